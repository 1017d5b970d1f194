"""Prometheus metrics of emotions."""
