"""What the clusters' jobs used: Slurm's accounting kept for good, and sums per day of it.

ingest.py windows.py      the worker reads sacct in bounded windows, and goes on where it was
archive.py rebuild.py     a job's row is stored once per key, its days' sums with it; sums made anew
buckets.py histograms.py wait_classes.py   pure. What a job adds to the days it touched
packed.py                 a day's sums as columns: what reports read
looks.py                  node events, reservations, fair shares
waiting.py                jobs that wait, and what for
*tables.py                the rows of all this
"""
