"""Measurements that the docs report; each file tells its command."""
