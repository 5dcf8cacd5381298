"""One's own limits: how many runs one may still ask for, and how long they may take."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends

from broker.api.security import Ctx, requires
from broker.db import utcnow
from broker.identity import Permission, Principal
from broker.identity.service import find_user
from broker.quotas.limits import HOUR, max_run_hours, runs_per_day
from broker.quotas.periods import next_day
from broker.quotas.schemas import OwnLimits, UserMeter
from broker.quotas.service import user_use
from broker.quotas.views import view_quota
from broker.runs.ledger import active_runs

router = APIRouter(tags=["quotas"])


@router.get("/limits")
def own_limits(
    ctx: Ctx, principal: Annotated[Principal, Depends(requires(Permission.QUOTAS_READ))]
) -> OwnLimits:
    """One's own limits and what is used of them, and one's tenant's quota."""
    settings, now = ctx.settings.quotas, utcnow()
    midnight = next_day(now) - timedelta(days=1)
    with ctx.db.read() as session:
        active = active_runs(session, principal.user_id)
        asked = user_use(session, principal.user_id, active, now).requested
        allowed = find_user(session, principal.user_id).max_training_hours
        tenant = view_quota(session, settings, principal.tenant, now)
    return OwnLimits(
        active_runs=UserMeter(limit=settings.active_runs_per_user, used=active),
        runs_last_hour=UserMeter(limit=settings.runs_per_hour, used=sum(at > now - HOUR for at in asked)),
        runs_today=UserMeter(
            limit=runs_per_day(settings, principal.role), used=sum(at >= midnight for at in asked)
        ),
        max_run_hours=max_run_hours(settings, allowed),
        tenant=tenant,
    )
