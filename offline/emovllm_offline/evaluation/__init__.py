"""Evaluation and calibration: what a circuit does to replies, and what it costs them."""
