"""Tenants in Slurm: accounts with their fair share, people, and the QOS of the priority classes.

What should be (settings, tenants, people, quotas), what is (`sacctmgr show`) and what the broker set last are
compared by a pure function (`plan`); what somebody changed by hand is shown and never overwritten unasked.
"""
