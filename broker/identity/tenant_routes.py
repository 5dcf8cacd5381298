"""Tenants: everyone reads the own one, admins keep them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from broker.api.conditional import IfMatch, check_if_match, etag
from broker.api.pagination import Page, PageParams, paginate
from broker.api.security import Auth, Ctx, requires
from broker.identity import Permission, Principal
from broker.identity.schemas import TenantChange, TenantCreate, TenantView
from broker.identity.tables import TenantRow
from broker.identity.tenants import change_tenant, create_tenant, find_tenant, visible_tenants

router = APIRouter(tags=["tenants"])
Reader = Annotated[Principal, Depends(requires(Permission.TENANTS_READ))]
Admin = Annotated[Principal, Depends(requires(Permission.TENANTS_MANAGE))]


@router.get("/tenants")
def list_tenants(ctx: Ctx, page: PageParams, principal: Reader) -> Page[TenantView]:
    """The tenants one may see, by name from z to a: the own one, for admins all."""
    with ctx.db.read() as session:
        query = visible_tenants(principal)
        return Page[TenantView](**paginate(session, query, TenantRow.name, page, view))


@router.post("/tenants", status_code=201)
def add_tenant(body: TenantCreate, ctx: Ctx, principal: Admin) -> TenantView:
    """Make a tenant. `broker cluster sync` makes its Slurm account."""
    with ctx.db.write() as session:
        row = create_tenant(session, principal, body)
        session.flush()
        return view(row)


@router.get("/tenants/{name}")
def show_tenant(name: str, ctx: Ctx, response: Response, principal: Reader) -> TenantView:
    """One tenant."""
    with ctx.db.read() as session:
        row = find_tenant(session, principal, name)
    response.headers["ETag"] = etag(row.row_version)
    return view(row)


@router.patch("/tenants/{name}")
def edit_tenant(
    name: str,
    body: TenantChange,
    ctx: Ctx,
    auth: Auth,
    response: Response,
    principal: Admin,
    if_match: IfMatch = None,
) -> TenantView:
    """Change a tenant; closing it shuts its people out, opening it lets them in again."""
    with ctx.db.write() as session:
        row = find_tenant(session, principal, name)
        check_if_match(if_match, etag(row.row_version))
        change_tenant(session, principal, row, body)
        session.flush()
    auth.forget(None)
    response.headers["ETag"] = etag(row.row_version)
    return view(row)


def view(row: TenantRow) -> TenantView:
    """A tenant as people see it."""
    columns = {name: getattr(row, name) for name in TenantView.model_fields if name != "version"}
    return TenantView(**columns, version=row.row_version)
