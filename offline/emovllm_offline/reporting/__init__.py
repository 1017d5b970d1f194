"""How results are shown: tables, pages, and what figures share."""
