"""Which emotion a text shows, by several judges."""
