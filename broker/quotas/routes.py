"""Quotas over HTTP: everyone reads the own tenant's, admins set them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from broker.api.conditional import IfMatch, check_if_match, etag
from broker.api.pagination import Page, PageParams, fetch
from broker.api.security import Ctx, requires
from broker.db import utcnow
from broker.identity import Permission, Principal
from broker.identity.tables import TenantRow
from broker.identity.tenants import find_tenant, visible_tenants
from broker.quotas.schemas import QuotaChange, QuotaView, UsageView
from broker.quotas.service import checked_month, lock_quota, quota_of, set_quota
from broker.quotas.views import view_quota, view_usage

router = APIRouter(tags=["quotas"])
Reader = Annotated[Principal, Depends(requires(Permission.QUOTAS_READ))]
Admin = Annotated[Principal, Depends(requires(Permission.QUOTAS_MANAGE))]


@router.get("/quotas")
def list_quotas(ctx: Ctx, page: PageParams, principal: Reader) -> Page[QuotaView]:
    """The quotas of the tenants one may see, and what is used of them, by name from z to a."""
    settings, now = ctx.settings.quotas, utcnow()
    with ctx.db.read() as session:
        rows, cursor = fetch(session, visible_tenants(principal), TenantRow.name, page)
        items = [view_quota(session, settings, row.name, now) for row in rows]
    return Page[QuotaView](items=items, next_cursor=cursor)


@router.get("/tenants/{name}/quota")
def show_quota(name: str, ctx: Ctx, response: Response, principal: Reader) -> QuotaView:
    """One tenant's quota, and what is used of it."""
    with ctx.db.read() as session:
        tenant = find_tenant(session, principal, name).name
        view = view_quota(session, ctx.settings.quotas, tenant, utcnow())
    response.headers["ETag"] = etag(view.version)
    return view


@router.put("/tenants/{name}/quota")
def put_quota(
    name: str,
    body: QuotaChange,
    ctx: Ctx,
    response: Response,
    principal: Admin,
    if_match: IfMatch = None,
) -> QuotaView:
    """Set a tenant's own numbers; what is left out is the setting's again. They hold from now on.

    API calls see it within a second; runs that wait go on at the worker's next look.
    """
    with ctx.db.write() as session:
        tenant = find_tenant(session, principal, name).name
        lock_quota(session, tenant)
        check_if_match(if_match, etag(quota_of(session, ctx.settings.quotas, tenant).version))
        set_quota(session, principal, tenant, body)
        view = view_quota(session, ctx.settings.quotas, tenant, utcnow())
    response.headers["ETag"] = etag(view.version)
    return view


@router.get("/tenants/{name}/usage")
def show_usage(
    name: str,
    ctx: Ctx,
    principal: Reader,
    month: Annotated[
        str | None, Query(max_length=7, description="Like `2026-11`; the present one if unset")
    ] = None,
) -> UsageView:
    """What a tenant used in a month (UTC), by person."""
    now = utcnow()
    with ctx.db.read() as session:
        tenant = find_tenant(session, principal, name).name
        return view_usage(session, tenant, checked_month(month, now), now)
