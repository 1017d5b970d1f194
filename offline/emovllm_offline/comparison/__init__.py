"""Runs of our commands beside each other: one table over models and runs."""
