"""Who asks and what a route asks for. Every route names exactly one permission; a test walks them all.

    @router.get("/things")
    def list_things(ctx: Ctx, principal: Annotated[Principal, Depends(requires(Permission.RUNS_READ))]) -> …

Dependencies are `async` although they may read the database: what is remembered (`Authenticator`) costs no
hop into the thread pool, and only the read itself is sent there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

import structlog
from fastapi import Depends, Request, Security
from fastapi.routing import APIRoute, RouteContext
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from broker.api.parameters import refuse_undeclared
from broker.context import Context
from broker.errors import Denied, Problem, Unauthenticated
from broker.identity import Permission, Principal
from broker.identity.keys import key_id
from broker.identity.permissions import ALLOWED
from broker.identity.sessions import Account, Authenticator
from broker.identity.throttle import LoginThrottle

bearer = HTTPBearer(
    auto_error=False,
    bearerFormat="JWT or API key",
    scheme_name="token",
    description="A token of `POST /api/v1/auth/login`, or an API key of `POST /api/v1/keys`",
)
_MARK = "broker_permission"
PUBLIC = "public"


async def get_context(request: Request) -> Context:
    """The context that the application was made with."""
    context: Context = request.app.state.context
    return context


async def get_authenticator(request: Request) -> Authenticator:
    """The application's authenticator."""
    authenticator: Authenticator = request.app.state.authenticator
    return authenticator


async def get_throttle(request: Request) -> LoginThrottle:
    """The application's brake on guessing passwords."""
    throttle: LoginThrottle = request.app.state.throttle
    return throttle


class CallMeter(Protocol):
    """What counts API calls (`quotas.meter.ApiMeter`, which this module lies below)."""

    def knows(self, tenant: str) -> bool:
        """Whether a call can be judged by what is remembered; else `load` first."""

    def load(self, tenant: str) -> None:
        """Read what is used, and the quota."""

    def count(self, tenant: str, *, always: bool) -> None:
        """Count one call; raises `LimitReached` when the day's are used up, unless `always`."""


async def get_meter(request: Request) -> CallMeter:
    """The application's counter of API calls."""
    meter: CallMeter = request.app.state.meter
    return meter


Ctx = Annotated[Context, Depends(get_context)]
Auth = Annotated[Authenticator, Depends(get_authenticator)]
Throttle = Annotated[LoginThrottle, Depends(get_throttle)]
Calls = Annotated[CallMeter, Depends(get_meter)]
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]


def requires(permission: Permission) -> Callable[..., Awaitable[Principal]]:
    """A dependency that gives the `Principal`, or ends the request with 401, 403, or 422 (parameters)."""

    async def caller(
        request: Request, authenticator: Auth, meter: Calls, credentials: Credentials
    ) -> Principal:
        account = await authenticated(authenticator, credentials)
        check(account, permission)
        await count(meter, account.principal, permission)
        refuse_undeclared(request)
        return account.principal

    setattr(caller, _MARK, permission)
    return caller


def requires_unless(
    permission: Permission, public: Callable[[Context], bool]
) -> Callable[..., Awaitable[None]]:
    """Like `requires`, but open to all when a setting says so; gives no principal."""

    async def caller(request: Request, ctx: Ctx, authenticator: Auth, credentials: Credentials) -> None:
        if not public(ctx):
            check(await authenticated(authenticator, credentials), permission)
        refuse_undeclared(request)

    setattr(caller, _MARK, permission)
    return caller


async def open_to_all(request: Request) -> None:
    """Marks a route that asks for no login."""
    refuse_undeclared(request)


setattr(open_to_all, _MARK, PUBLIC)


async def authenticated(
    authenticator: Authenticator, credentials: HTTPAuthorizationCredentials | None
) -> Account:
    """The account of a request; raises `Unauthenticated`."""
    if credentials is None:
        raise Unauthenticated("Log in first: send `Authorization: Bearer TOKEN` (POST /api/v1/auth/login)")
    token = credentials.credentials
    account = authenticator.remembered_account(token)
    if account is None:
        account = await run_in_threadpool(authenticator.verify, token)
    structlog.contextvars.bind_contextvars(user=account.principal.username)
    if key := key_id(token):
        structlog.contextvars.bind_contextvars(key=key)
    return account


def check(account: Account, permission: Permission) -> None:
    """Raise `Denied` unless the account may do what `permission` names."""
    if account.must_change_password and permission is not Permission.ACCOUNT:
        detail = "The password was for one use: choose your own first (POST /api/v1/auth/password)"
        raise Denied(detail, problems=[Problem("", "password_change_required", detail)])
    principal = account.principal
    if permission in ALLOWED[principal.role] and not principal.can(permission):
        raise Denied(f"This API key was not given {permission}: make one that has it, or log in")
    if not principal.can(permission):
        raise Denied(f"The role {principal.role} may not do this ({permission}): ask an admin")


async def count(meter: CallMeter, principal: Principal, permission: Permission) -> None:
    """Count an API call of the caller's tenant; raises `LimitReached` when the day's are used up.

    An admin's pass nevertheless (who else would raise the quota), as do those that show it.
    """
    if not meter.knows(principal.tenant):
        await run_in_threadpool(meter.load, principal.tenant)
    meter.count(principal.tenant, always=principal.is_admin or permission in _ALWAYS)


_ALWAYS = frozenset({Permission.ACCOUNT, Permission.QUOTAS_READ})


def declared_permission(route: RouteContext) -> Permission | str | None:
    """What a route asks for: a permission, `PUBLIC`, or None when it does not say (a mistake)."""

    def walk(dependant: Any) -> list[Permission | str]:
        mark = getattr(dependant.call, _MARK, None)
        return ([mark] if mark else []) + [m for child in dependant.dependencies for m in walk(child)]

    assert isinstance(route.original_route, APIRoute)
    found = walk(route.original_route.dependant)
    return found[0] if len(found) == 1 else None
