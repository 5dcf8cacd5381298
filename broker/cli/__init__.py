"""The `broker` command: a client of the API, the server itself, and tools for whoever runs it.

options        what many commands share
output         tables, JSON, errors
client         the REST API; `credentials` keeps the token
auth  pipelines  runs  models  admin            commands of the client
following  run_views  transfers                 what they are made of
offline        specs without a server
server  up  database  doctor                    commands of the server

Exit codes: 0 done · 1 a waited-for run did not succeed, or a check failed · 2 wrong input · else that of the
error (`broker.errors`; after sysexits.h) · 130 interrupted.
"""

from broker.cli.app import app, main

__all__ = ["app", "main"]
