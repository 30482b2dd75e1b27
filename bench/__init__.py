"""Benchmarks: each prints its command, the hardware it ran on, and tables."""
