"""Logging in, one's own account, and the accounts of the people one looks after."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from broker.api.conditional import IfMatch, check_if_match, etag
from broker.api.pagination import Page, PageParams, paginate
from broker.api.security import Auth, Ctx, Throttle, open_to_all, requires
from broker.context import Context
from broker.errors import InvalidRequest, Problem
from broker.identity import Permission, Principal, logins
from broker.identity.passwords import check_new_password, hash_password, one_time_password
from broker.identity.schemas import (
    LoginRequest,
    Me,
    PasswordChange,
    RefreshRequest,
    TokenView,
    UserChange,
    UserCreate,
    UserCreated,
    UserView,
)
from broker.identity.service import (
    authenticate,
    change_password,
    change_user,
    create_user,
    find_person,
    find_user,
    visible_people,
)
from broker.identity.tables import UserRow

router = APIRouter()
Self = Annotated[Principal, Depends(requires(Permission.ACCOUNT))]
Admin = Annotated[Principal, Depends(requires(Permission.USERS_MANAGE))]


@router.post("/auth/login", tags=["auth"], dependencies=[Depends(open_to_all)])
def login(request: Request, body: LoginRequest, ctx: Ctx, auth: Auth, throttle: Throttle) -> TokenView:
    """Give a token for a user name and a password.

    After five failures of one name from one address each further try is answered 429 with a growing
    `Retry-After`.
    """
    address = request.client.host if request.client else ""
    user = authenticate(ctx.db, throttle, body.username, body.password, address)
    return logins.begin(ctx.db, auth.signer, user)


@router.post("/auth/refresh", tags=["auth"], dependencies=[Depends(open_to_all)])
def refresh_token(body: RefreshRequest, ctx: Ctx, auth: Auth) -> TokenView:
    """Give new tokens for a refresh token, which is used up.

    Using one twice ends the login: one of the two who hold it has no right to it.
    """
    return logins.refresh(ctx.db, auth.signer, body.refresh_token)


@router.post("/auth/logout", tags=["auth"], status_code=204, dependencies=[Depends(open_to_all)])
def logout(body: RefreshRequest, ctx: Ctx, auth: Auth) -> None:
    """End a login: its refresh token is void; its access token lives on for its few minutes."""
    logins.end(ctx.db, auth.signer, body.refresh_token)


@router.post("/auth/password", tags=["auth"])
def change_own_password(
    body: PasswordChange, ctx: Ctx, auth: Auth, throttle: Throttle, principal: Self
) -> TokenView:
    """Change one's own password; ends every login but gives new tokens. API keys stay."""
    user = change_password(ctx.db, throttle, principal, body.old, body.new)
    auth.forget(user.id)
    return logins.begin(ctx.db, auth.signer, user)


@router.get("/auth/me", tags=["auth"])
def who_am_i(ctx: Ctx, principal: Self) -> Me:
    """One's own account and what it may do."""
    with ctx.db.read() as session:
        user = find_user(session, principal.user_id)
    permissions = [Permission.ACCOUNT] if user.must_change_password else sorted(principal.permissions)
    return Me(**view(user).model_dump(), permissions=permissions)


@router.get("/users", tags=["users"])
def list_users(ctx: Ctx, page: PageParams, principal: Admin) -> Page[UserView]:
    """The accounts one looks after, newest first: the tenant's, for admins all."""
    with ctx.db.read() as session:
        return Page[UserView](**paginate(session, visible_people(principal), UserRow.id, page, view))


@router.post("/users", tags=["users"], status_code=201)
def add_user(body: UserCreate, ctx: Ctx, principal: Admin) -> UserCreated:
    """Create an account. Its password must be changed at the first login.

    A tenant's admin makes viewers, researchers and further admins of the own tenant.
    """
    _check_hours(ctx, body.max_training_hours)
    if body.password is not None:
        check_new_password(body.password, body.username, "/password")
    made = None if body.password is not None else one_time_password()
    hashed = hash_password(body.password or made or "")
    with ctx.db.write() as session:
        user = create_user(session, principal, body, hashed)
        session.flush()
        return UserCreated(**view(user).model_dump(), one_time_password=made)


@router.get("/users/{user}", tags=["users"])
def show_user(user: str, ctx: Ctx, response: Response, principal: Admin) -> UserView:
    """One account, by id or user name."""
    with ctx.db.read() as session:
        row = find_person(session, principal, user)
    response.headers["ETag"] = etag(row.row_version)
    return view(row)


@router.patch("/users/{user}", tags=["users"])
def edit_user(
    user: str,
    body: UserChange,
    ctx: Ctx,
    auth: Auth,
    response: Response,
    principal: Admin,
    if_match: IfMatch = None,
) -> UserView:
    """Change an account; deactivating it, or giving it a new password, ends its logins and API keys."""
    _check_hours(ctx, body.max_training_hours)
    if body.password is not None:
        with ctx.db.read() as session:
            name = find_person(session, principal, user).username  # `user` may be the id
        check_new_password(body.password, name, "/password")
    hashed = hash_password(body.password) if body.password is not None else None
    with ctx.db.write() as session:
        row = find_person(session, principal, user)
        check_if_match(if_match, etag(row.row_version))
        change_user(session, principal, row, body, hashed)
        session.flush()
    auth.forget(row.id)
    response.headers["ETag"] = etag(row.row_version)
    return view(row)


def _check_hours(ctx: Context, hours: int | None) -> None:
    longest = ctx.settings.quotas.max_allowed_hours
    if hours is not None and hours > longest:
        detail = f"Nobody runs longer than {longest:g} h (`quotas.max_allowed_hours`): allow less"
        problem = Problem("/max_training_hours", "beyond_limit", detail)
        raise InvalidRequest(detail, problems=[problem])


def view(user: UserRow) -> UserView:
    """An account as people see it."""
    columns = {name: getattr(user, name) for name in UserView.model_fields if name != "version"}
    return UserView(**columns, version=user.row_version)
