"""Tasks small enough to enumerate, on which every method's optimum is known exactly."""
