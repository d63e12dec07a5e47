"""Rankings, agreement and intervals: pure functions of numpy arrays."""
