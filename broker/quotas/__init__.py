"""What a tenant and a person may use: quotas, rates, and the ledger of GPU hours.

`periods`, `ledger`, `limits`: pure. `accounts`: the ledger in the database. `service`: quotas, counters and
the admission of runs. `meter`: API calls, counted in memory. Of a run this package knows ids and numbers.
"""
