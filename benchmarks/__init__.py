"""Benchmarks: each prints figures beside the limit that it is measured against."""
