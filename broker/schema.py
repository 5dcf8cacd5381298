"""All tables together, and their migrations (Alembic, `migrations/`).

Importing this module registers every table of every domain in `Base.metadata`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

import broker.accounting.event_tables
import broker.accounting.tables
import broker.accounting.waiting_tables
import broker.api.idempotency
import broker.approvals.tables
import broker.audit.tables
import broker.costs.tables
import broker.db.leases
import broker.identity.oidc_tables
import broker.identity.tables
import broker.identity.throttle
import broker.models.tables
import broker.notifications.tables
import broker.pipelines.tables
import broker.queueing.tables
import broker.quotas.tables
import broker.reports.export_tables
import broker.resources.tables
import broker.runs.measured
import broker.runs.tables
import broker.tenancy.tables  # noqa: F401 - imported for their tables
from broker.audit.guard import ensure_guard
from broker.db import Base, Database
from broker.errors import ConfigurationError
from broker.identity.tenants import ensure_tenants

metadata = Base.metadata
MIGRATIONS = Path(__file__).parent / "migrations"
"""The folder `migrations/` of the project: a link in a checkout, a copy in an installed package."""
_LOCK = "select pg_advisory_xact_lock(hashtext('broker.migrations'))"


def config() -> Config:
    """Alembic's configuration, without a file."""
    if not (MIGRATIONS / "env.py").is_file():
        raise ConfigurationError(f"The migrations are missing: {MIGRATIONS} belongs to the installation")
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return made


@cache
def head() -> str | None:
    """The revision that this version of the broker needs."""
    return ScriptDirectory.from_config(config()).get_current_head()


def revision(db: Database) -> str | None:
    """The revision that the database has; None before its first upgrade."""
    with db.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def pending(db: Database) -> bool:
    """Whether the database needs `upgrade` before this version of the broker can use it."""
    return revision(db) != head()


def upgrade(db: Database) -> tuple[str | None, str | None]:
    """Bring the tables up to date; the revisions before and after. Safe to call from several processes.

    All steps are one transaction: a failure leaves the tables as they were.
    """
    with db.engine.execution_options(broker_write=True).begin() as connection:
        if not db.is_sqlite:
            connection.execute(text(_LOCK))
        before = MigrationContext.configure(connection).get_current_revision()
        made = config()
        made.attributes["connection"] = connection
        command.upgrade(made, "head")
        ensure_tenants(connection)
        ensure_guard(connection)
        after = MigrationContext.configure(connection).get_current_revision()
    return before, after
