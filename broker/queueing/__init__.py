"""The queue as Slurm would start it, why each run waits, and who may change that.

order.py      pure. Which waiting job comes before which; requests in words
reasons.py    pure. Slurm's reason, dependencies, holds → one sentence, English and Korean
levels.py     pure. What a wish (high, number, before a run, …) means for each waiting job
tables.py     the last look at each cluster's queue, and the wish that stands for a run
snapshot.py   stores that look (called by the tracker's poll); nothing that reads it asks Slurm
service.py    use cases: show the queue, wish for a priority, hold, release
changing.py   the worker's part: one remote command per wish, read back in the same command
"""
