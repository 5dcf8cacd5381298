"""Whose Unix account a run belongs to (`run_as`): decided when it is requested, kept for all its attempts."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.context import Context
from broker.errors import Denied, Problem
from broker.identity.tables import UserRow
from broker.runs.tables import RunRow


def account_for(ctx: Context, session: Session, cluster: str, user_id: str) -> str | None:
    """The Unix account of a person's new run on a cluster; None where the service account runs everything.

    `Denied` where runs are their people's own and an admin has not said which account is this person's. That
    it exists on the cluster, and is a person's, is looked at there before anything is done (`PersonHost`).
    """
    if ctx.cluster(cluster).run_as == "service":
        return None
    found = _account_of(session, user_id)
    if found is None:
        detail = (
            f"Runs on {cluster} belong to the Unix accounts of their people, and yours is not known to the "
            "broker; an admin sets it: broker user change NAME --unix-account ACCOUNT"
        )
        raise Denied(detail, problems=[Problem("/cluster", "no_unix_account", detail)])
    return found


def check_account(session: Session, run: RunRow) -> None:
    """Whether the run's account is its owner's still: it may have waited for long, or be run again.

    Raises `Denied` when an admin has taken it away or given another: the files are the old account's.
    """
    if run.unix_account is not None and _account_of(session, run.owner_id) != run.unix_account:
        raise Denied(
            f"The run belongs to the Unix account {run.unix_account!r}, which is its owner's no more; "
            "submit the pipeline as a new run"
        )


def foreign(directory: str) -> Denied:
    """The error for a run's directory that somebody else had made before the run came to it."""
    return Denied(
        f"{directory} was made by somebody else before the run came: nothing was written into it. Request "
        "the run again, and tell an admin: everybody may make folders there"
    )


def _account_of(session: Session, user_id: str) -> str | None:
    return session.scalar(select(UserRow.unix_account).where(UserRow.id == user_id))
