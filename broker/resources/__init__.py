"""What the clusters have, what of it is given away, what is really used, and how that went over time.

The worker looks once per poll and stores what it saw; everybody else reads that. `snapshot` is pure.
"""
