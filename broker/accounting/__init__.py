"""What the cluster's jobs used: Slurm's accounting kept for good, and reports over it."""
