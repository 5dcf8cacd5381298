"""What people are told of, whom it concerns, and by which ways. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from broker.identity.permissions import Principal, Role


class Kind(StrEnum):
    """What a notice is about."""

    RUN_APPROVAL_REQUESTED = "run_approval_requested"
    RUN_DECIDED = "run_decided"
    RUN_STARTED = "run_started"
    RUN_COMPLETED = "run_completed"
    RUN_FAILED = "run_failed"
    RUN_TIMED_OUT = "run_timed_out"
    RUN_STALLED = "run_stalled"
    RUN_GPU_IDLE = "run_gpu_idle"
    RUN_GPU_BUSY = "run_gpu_busy"
    QUOTA_80 = "quota_80"
    QUOTA_100 = "quota_100"
    CLUSTER_UNREACHABLE = "cluster_unreachable"
    WEBHOOK_TEST = "webhook_test"

    @property
    def event_type(self) -> str:
        """The `type` of a webhook's message: hierarchical, parts joined by full stops.

        >>> Kind.RUN_TIMED_OUT.event_type
        'run.timed_out'
        """
        return self.replace("_", ".", 1)


NEWS: Final = tuple(kind for kind in Kind if kind is not Kind.WEBHOOK_TEST)
"""What one can subscribe to: everything but the test message of a webhook."""


class Channel(StrEnum):
    """A way by which a notice reaches somebody."""

    WEBHOOK = "webhook"
    EMAIL = "email"
    CHAT = "chat"
    STREAM = "stream"


class Audience(StrEnum):
    """Whom a kind concerns."""

    OWNER = "owner"
    TENANT_ADMINS = "tenant_admins"
    ADMINS = "admins"


_OWNER: Final = frozenset({Audience.OWNER})
_QUOTA: Final = frozenset({Audience.TENANT_ADMINS, Audience.ADMINS})
_ADMINS: Final = frozenset({Audience.ADMINS})
AUDIENCE: Final[Mapping[Kind, frozenset[Audience]]] = {
    Kind.RUN_APPROVAL_REQUESTED: _ADMINS,
    Kind.RUN_DECIDED: _OWNER,
    Kind.RUN_STARTED: _OWNER,
    Kind.RUN_COMPLETED: _OWNER,
    Kind.RUN_FAILED: _OWNER,
    Kind.RUN_TIMED_OUT: _OWNER,
    Kind.RUN_STALLED: _OWNER,
    Kind.RUN_GPU_IDLE: _OWNER,
    Kind.RUN_GPU_BUSY: _OWNER,
    Kind.QUOTA_80: _QUOTA,
    Kind.QUOTA_100: _QUOTA,
    Kind.CLUSTER_UNREACHABLE: _ADMINS,
    Kind.WEBHOOK_TEST: frozenset(),
}

PERSONAL: Final = (Channel.STREAM, Channel.EMAIL)
"""The ways a person chooses between; webhooks and chat rooms choose their kinds themselves."""


def kinds_for(audience: Audience) -> tuple[Kind, ...]:
    """The kinds that concern an audience."""
    return tuple(kind for kind in NEWS if audience in AUDIENCE[kind])


def concerns(principal: Principal, kind: Kind, tenant: str | None, user_id: str | None) -> bool:
    """Whether a notice is for this person. `user_id` is whose run it is, None where it is about no run."""
    audience = AUDIENCE[kind]
    if Audience.OWNER in audience and user_id is not None and user_id == principal.user_id:
        return True
    if Audience.ADMINS in audience and principal.is_admin:
        return True
    leads = principal.role is Role.TENANT_ADMIN and tenant == principal.tenant
    return Audience.TENANT_ADMINS in audience and leads


def wanted(chosen: Mapping[str, Sequence[str]], kind: Kind, channel: Channel) -> bool:
    """Whether somebody wants this kind this way: their choice, else all but e-mail about what goes well.

    >>> wanted({}, Kind.RUN_STARTED, Channel.EMAIL), wanted({}, Kind.RUN_FAILED, Channel.EMAIL)
    (False, True)
    >>> wanted({"run_failed": ["stream"]}, Kind.RUN_FAILED, Channel.EMAIL)
    False
    """
    if kind in chosen:
        return channel in chosen[kind]
    return channel is Channel.STREAM or kind not in {Kind.RUN_STARTED, Kind.RUN_GPU_BUSY}


def wanted_by_tenant(chosen: Mapping[str, Sequence[str]], kind: Kind) -> bool:
    """Whether a tenant's shared address gets this kind: its choice, else what concerns its admins."""
    if kind in chosen:
        return Channel.EMAIL in chosen[kind]
    return Audience.TENANT_ADMINS in AUDIENCE[kind]
