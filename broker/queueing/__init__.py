"""The queue as Slurm would start it, why each run waits, and who may change that.

order.py      pure. Which waiting job comes before which; requests in words
reasons.py    pure. Slurm's reason, dependencies, holds → one sentence, English and Korean
slurm_reasons.py  pure. Slurm's own reasons and limits, in both languages
wishes.py     pure. What a wish (high, a number, before a run, …) means for each job; whether it came true
tables.py     the wish that stands for a run
snapshot.py   stores each look that the tracker hands over; finds wishes that no longer stand
listing.py    the queue as people see it, from the database alone
service.py    use cases: wish for a priority, hold, release
changing.py   the worker's part: one remote command per wish, read back in the same command
"""
