"""The human: a label service over SQLite, a ranking page, and a simulated panel."""
