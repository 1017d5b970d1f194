"""Concurrent clients on a server, each of whose replies is checked: `python -m benchmarks.load`."""
