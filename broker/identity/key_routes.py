"""API keys: one's own, and those of the people one looks after."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from broker.api.pagination import Page, PageParams, paginate
from broker.api.security import Auth, Ctx, requires
from broker.identity import Permission, Principal
from broker.identity.keys import create_key, delete_key, keys_of
from broker.identity.schemas import KeyCreate, KeyCreated, KeyView
from broker.identity.tables import ApiKeyRow

router = APIRouter(tags=["keys"])
Owner = Annotated[Principal, Depends(requires(Permission.KEYS_MANAGE))]


@router.get("/keys")
def list_keys(
    ctx: Ctx,
    page: PageParams,
    principal: Owner,
    user: Annotated[
        str | None, Query(max_length=64, description="Of this person (admins, the tenant's admin)")
    ] = None,
) -> Page[KeyView]:
    """One's own API keys, newest first; never their secrets."""
    with ctx.db.read() as session:
        query = keys_of(session, principal, user)
        return Page[KeyView](**paginate(session, query, ApiKeyRow.id, page, view))


@router.post("/keys", status_code=201)
def add_key(body: KeyCreate, ctx: Ctx, principal: Owner) -> KeyCreated:
    """Make an API key of one's own. The answer shows it, and nothing else ever does."""
    with ctx.db.write() as session:
        row, text = create_key(session, principal, body, ctx.settings.api)
        session.flush()
        return KeyCreated(**view(row).model_dump(), key=text)


@router.delete("/keys/{key_id}", status_code=204)
def revoke_key(key_id: str, ctx: Ctx, auth: Auth, principal: Owner) -> None:
    """Revoke an API key: nothing is done with it any more."""
    with ctx.db.write() as session:
        row = delete_key(session, principal, key_id)
    auth.forget(row.user_id)


def view(row: ApiKeyRow) -> KeyView:
    """A key as people see it."""
    return KeyView(**{name: getattr(row, name) for name in KeyView.model_fields})
