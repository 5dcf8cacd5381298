"""Who may ask for another run, for how long, and what Slurm enforces behind the broker. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.errors import BrokerError, InvalidRequest, LimitReached, Problem
from broker.identity import Role
from broker.quotas.ledger import HOUR_S, hours
from broker.quotas.periods import moment_text, next_day
from broker.settings import QuotaSettings

HOUR = timedelta(hours=1)
LOOK_AGAIN_S = 60.0
"""`Retry-After` while too many runs are active: nobody knows when one of them ends."""


@dataclass(frozen=True, slots=True)
class UserUse:
    """What a person has asked for: runs that have not ended, and the moments of the latest requests."""

    active: int
    requested: Sequence[datetime]


def runs_per_day(settings: QuotaSettings, role: Role) -> int:
    """Runs a day of an account of this role (AM-09)."""
    return settings.internal_runs_per_day if role is Role.INTERNAL else settings.runs_per_day


def check_user(use: UserUse, settings: QuotaSettings, role: Role, now: datetime) -> None:
    """Raise `LimitReached` when the person may not ask for another run now; the longest wait is named.

    A day begins at 00:00 UTC; an hour is the last sixty minutes.
    """
    midnight = next_day(now) - timedelta(days=1)
    today = sum(at >= midnight for at in use.requested)
    recent = sorted(at for at in use.requested if at > now - HOUR)
    if today >= (per_day := runs_per_day(settings, role)):
        raise limit_reached(
            "runs_per_day", f"You have asked for {today} of your {per_day} runs of today", next_day(now), now
        )
    if len(recent) >= settings.runs_per_hour:
        again = recent[len(recent) - settings.runs_per_hour] + HOUR
        said = f"You have asked for {len(recent)} runs within an hour; {settings.runs_per_hour} are taken"
        raise limit_reached("runs_per_hour", said, again, now)
    if use.active >= settings.active_runs_per_user:
        detail = (
            f"{use.active} of your runs have not ended and {settings.active_runs_per_user} may be active at "
            "once: wait for one of them to end, or cancel one"
        )
        raise LimitReached(detail, problems=[Problem("", "active_runs", detail)], retry_after_s=LOOK_AGAIN_S)


def limit_reached(code: str, said: str, until: datetime, now: datetime) -> LimitReached:
    """What, how much, and until when (429)."""
    detail = f"{said}; more from {moment_text(until)}"
    wait_s = max(1.0, (until - now).total_seconds())
    return LimitReached(detail, problems=[Problem("", code, detail)], retry_after_s=wait_s)


def larger_than_quota(gpu_seconds: int, limit_s: int, tenant: str) -> BrokerError | None:
    """The refusal of a run that no month has room for; None when it fits into an empty one."""
    if gpu_seconds <= limit_s:
        return None
    detail = (
        f"The run would reserve {hours(gpu_seconds)} GPU hours (GPUs x time limit, over all components) and "
        f"the tenant {tenant} has {hours(limit_s)} a month: ask for fewer GPUs or less time, or have an "
        "admin raise the quota"
    )
    return InvalidRequest(detail, problems=[Problem("", "larger_than_quota", detail)])


def max_run_hours(settings: QuotaSettings, allowed: int | None) -> float:
    """The longest time limit that a person may ask for: everybody's, or what an admin allowed (AM-10)."""
    return settings.max_run_hours if allowed is None else min(allowed, settings.max_allowed_hours)


def check_times(times_s: Mapping[str, int], longest_hours: float) -> None:
    """Raise `InvalidRequest` when a component (name → time limit) wants to run longer than its owner may."""
    problems = [
        Problem(
            f"/overrides/components/{name}/time",
            "time_limit",
            f"{name} asks for {hours(wanted)} h; you may ask for {longest_hours:g} h: take less, save "
            "checkpoints and run it again, or have an admin allow more (`max_training_hours`)",
        )
        for name, wanted in times_s.items()
        if wanted > longest_hours * HOUR_S
    ]
    if problems:
        raise InvalidRequest(problems[0].detail, problems=problems)


def backstop(gpu_hours: float, max_gpus: int | None) -> dict[str, str]:
    """A tenant's limits as its Slurm association carries them (sacctmgr(1)); "-1" takes a limit away.

    `GrpTRESRunMins`: what runs at one moment can't use more from then on than two months' quotas, whatever
    the broker believes; at the end of a month it may have let go as much, of this one and of the next.
    `GrpTRES`: GPUs at once. `GrpTRESMins` is not used: it decays with the half-life of fair share, so it is
    no monthly limit, and running jobs are killed at it.
    """
    return {
        "GrpTRES": f"gres/gpu={-1 if max_gpus is None else max_gpus}",
        "GrpTRESRunMins": f"gres/gpu={math.ceil(2 * gpu_hours * 60)}",
    }
