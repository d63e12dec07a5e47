"""Benchmarks of the label service: latency at 24 clients, kills, size. See __main__."""
