"""Everything that touches vLLM, one seam per module."""
