"""Reports over what jobs used: what figures mean, where lines come from, how they are shown.

What a report is:
    measures.py definitions*.py      pure. Figures with their definitions in two languages, reports of them
    wanted.py                        pure. What is asked for, by whom, and the order of the lines
Where its lines come from:
    sources.py                       the reader of each report
    days.py grouping.py              the sums of days, added up as columns
    capacity.py downtime.py          what clusters had and lacked: `node_events.py`, cut by `spans.py`
    fair_share.py                    sshare at the last look
    quota_report.py standing.py      quotas, and when they run out
    waiting_report.py                what waits longest, and why; `merging.py` adds up these two
    jobs.py                          the jobs behind a line
How it is shown:
    views.py schemas.py routes.py    as JSON, with coverage, age and the way to the jobs
    spreadsheets.py parquet.py       as files
    export_plan.py exporter.py       finished periods in the object store, written by the worker
    export_requests.py               asking for earlier ones, over `export_routes.py`
    export_tables.py export_rows.py  what became of them
"""
