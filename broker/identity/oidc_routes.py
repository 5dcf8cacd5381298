"""Single sign-on over HTTP: the browser's way to the provider and back, and the one-time code for tokens."""

from __future__ import annotations

import html
import secrets
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Cookie, Depends, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from broker.api.parameters import any_parameters
from broker.api.security import Auth, Ctx, open_to_all, requires
from broker.context import Context
from broker.errors import ConfigurationError, NotFound
from broker.identity import Permission, Principal, logins
from broker.identity.oidc import AT_THE_PROVIDER, SignOn, Wish
from broker.identity.oidc_links import links_of, unlink
from broker.identity.oidc_provider import Provider
from broker.identity.schemas import TokenView
from broker.settings import OidcSettings, read_secret
from broker.text import RequestModel

CALLBACK = "/api/v1/auth/oidc/callback"
COOKIE = "broker_sign_on"
router = APIRouter(prefix="/auth/oidc", tags=["auth"], dependencies=[Depends(open_to_all)])
links_router = APIRouter(prefix="/users", tags=["users"])
Admin = Annotated[Principal, Depends(requires(Permission.USERS_MANAGE))]


class SignOnView(BaseModel):
    """Whether people may sign on elsewhere, and what that place is called."""

    enabled: bool
    name: str | None


class LinkView(BaseModel):
    """Somebody at a provider who signs on as an account."""

    model_config = ConfigDict(from_attributes=True)

    issuer: str
    subject: str
    linked_at: datetime
    signed_on_at: datetime = Field(description="Last time")


class LinkList(BaseModel):
    """All of them."""

    items: list[LinkView]


class CodeRequest(RequestModel):
    """The one-time code, and the verifier of the challenge that the sign-on began with."""

    code: str = Field(max_length=200)
    code_verifier: str = Field(min_length=43, max_length=128, pattern=r"^[A-Za-z0-9._~-]+$")


def make_sign_on(ctx: Context, key: str) -> SignOn | None:
    """Single sign-on as the settings want it; None without a provider. `key` signs the broker's tokens."""
    settings = ctx.settings.oidc
    if settings.issuer is None:
        return None
    if settings.public_url is None:
        raise ConfigurationError(
            "`oidc.issuer` needs `oidc.public_url`: where the provider sends browsers back to"
        )
    secret = read_secret(settings.client_secret_file) if settings.client_secret_file else None
    return SignOn(ctx.db, settings, Provider(settings, secret, settings.public_url + CALLBACK), key)


async def get_sign_on(request: Request) -> SignOn:
    """The application's single sign-on."""
    sign_on: SignOn | None = request.app.state.sign_on
    if sign_on is None:
        raise NotFound("There is no single sign-on here: log in with a password (POST /api/v1/auth/login)")
    return sign_on


Single = Annotated[SignOn, Depends(get_sign_on)]
Browser = Annotated[str | None, Cookie(alias=COOKIE, max_length=100, include_in_schema=False)]


@router.get("")
def single_sign_on(ctx: Ctx) -> SignOnView:
    """Whether there is single sign-on, and its name."""
    settings = ctx.settings.oidc
    return SignOnView(enabled=settings.issuer is not None, name=settings.name if settings.issuer else None)


@router.get("/login", status_code=303, response_class=RedirectResponse)
def begin_sign_on(
    ctx: Ctx,
    sign_on: Single,
    code_challenge: Annotated[
        str, Query(max_length=128, description="S256 challenge of a code verifier (RFC 7636)")
    ],
    redirect_uri: Annotated[
        str | None,
        Query(
            max_length=500,
            description="Where the one-time code goes: a path of the console, or a port of your own machine "
            "(`http://127.0.0.1:PORT/…`); unset: it is shown, to be copied",
        ),
    ] = None,
    state: Annotated[str | None, Query(max_length=200, description="Comes back with the code")] = None,
    browser: Browser = None,
) -> Response:
    """Send a browser to the provider."""
    browser = browser or secrets.token_urlsafe(32)
    answer = RedirectResponse(sign_on.begin(Wish(code_challenge, redirect_uri, state), browser), 303)
    answer.set_cookie(
        COOKIE,
        browser,
        max_age=int(AT_THE_PROVIDER.total_seconds()),
        path=CALLBACK.rpartition("/")[0],
        secure=(ctx.settings.oidc.public_url or "").startswith("https:"),
        httponly=True,
        samesite="lax",  # the provider's redirect is a top-level navigation, which still carries it
    )
    return answer


@router.get(
    "/callback",
    dependencies=[Depends(any_parameters)],  # a provider may add what it likes (RFC 6749, 4.1.2)
    response_class=HTMLResponse,
    responses={
        200: {"content": {"text/html": {"schema": {"type": "string"}}}},
        303: {"description": "To the `redirect_uri`, with `code` or `error`, and `state`"},
    },
)
def end_sign_on(
    ctx: Ctx,
    sign_on: Single,
    state: Annotated[str, Query(max_length=4000)],
    code: Annotated[str | None, Query(max_length=4000)] = None,
    error: Annotated[str | None, Query(max_length=400)] = None,
    iss: Annotated[str | None, Query(max_length=400)] = None,
    browser: Browser = None,
) -> Response:
    """Where the provider sends the browser back to: on to whoever began, or a page with the one-time code."""
    outcome = sign_on.complete(state=state, browser=browser or "", code=code, error=error, issuer=iss)
    if (target := outcome.location()) is not None:
        public = ctx.settings.oidc.public_url or ""
        return RedirectResponse(public + target if target.startswith("/") else target, 303)
    if outcome.error is not None:
        raise outcome.error
    return _page(ctx.settings.oidc, outcome.code or "")


@router.post("/token")
def redeem_code(body: CodeRequest, ctx: Ctx, auth: Auth, sign_on: Single) -> TokenView:
    """Give tokens for the one-time code of a sign-on; it is used up, whether they fit or not."""
    return logins.begin(ctx.db, auth.signer, sign_on.redeem(body.code, body.code_verifier))


@links_router.get("/{user}/identities")
def list_identities(user: str, ctx: Ctx, principal: Admin) -> LinkList:
    """Who signs on as an account."""
    with ctx.db.read() as session:
        return LinkList(items=[LinkView.model_validate(row) for row in links_of(session, principal, user)])


@links_router.delete("/{user}/identities", status_code=204)
def unlink_identities(user: str, ctx: Ctx, auth: Auth, principal: Admin) -> None:
    """Let nobody sign on as an account any more; ends its logins and API keys."""
    with ctx.db.write() as session:
        row = unlink(session, principal, user)
    auth.forget(row.id)


def _page(settings: OidcSettings, code: str) -> HTMLResponse:
    """The code, for whoever began on a machine without a browser."""
    return HTMLResponse(
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(settings.name)}</title>
<p>Copy this code into the window where you began. It is good once, for five minutes.
Give it to nobody else: whoever sent you here by a link is not you.</p>
<p lang="ko">로그인을 시작한 창에 이 코드를 붙여 넣으십시오. 5분 동안 한 번만 쓸 수 있습니다.
다른 사람에게 알려 주지 마십시오.</p>
<p><code>{html.escape(code)}</code></p></html>
""",
        headers={
            "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",
        },
    )
