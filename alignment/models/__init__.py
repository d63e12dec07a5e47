"""Model folders, and the modules that turn hidden states into log-probabilities and values."""
