"""Whether a circuit's units do what they are said to, against controls."""
