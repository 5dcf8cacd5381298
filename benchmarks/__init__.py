"""Ratios of the broker to plain Slurm, measured in one run on one cluster: `python -m benchmarks`."""
