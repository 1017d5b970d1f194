"""`benchmarks/load.py`, in parts."""
