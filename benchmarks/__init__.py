"""Measurements that `make bench-...` runs; no part of the product imports them."""
