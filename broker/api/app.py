"""The application: every router, and what surrounds them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec

import anyio.to_thread
from fastapi import APIRouter, FastAPI

from broker import __version__
from broker.api import clusters, health, openapi, problems
from broker.api.middleware import JSON_LIMIT, RequestScope
from broker.audit.routes import router as audit_router
from broker.context import Context
from broker.identity.passwords import LoginThrottle
from broker.identity.routes import router as identity_router
from broker.identity.sessions import Authenticator
from broker.identity.tokens import TokenSigner, load_key
from broker.pipelines.routes import router as pipelines_router

PREFIX = "/api/v1"
UPLOADS = f"{PREFIX}/uploads"


def create_app(ctx: Context) -> FastAPI:
    """The API of one broker; makes the signing key of its tokens when there is none yet."""
    settings = ctx.settings
    app = make_app()
    app.state.context = ctx
    app.state.threads = settings.api.threads
    app.state.throttle = LoginThrottle()
    signer = TokenSigner(load_key(settings.data_dir), settings.api.access_token_minutes)
    app.state.authenticator = Authenticator(ctx.db, signer)
    upload_limit = settings.api.max_body_mib << 20
    app.add_middleware(
        RequestScope, limit_of=lambda path: upload_limit if path == UPLOADS else min(JSON_LIMIT, upload_limit)
    )
    return app


def make_app() -> FastAPI:
    """The routes and their description, without anything behind them (for `broker.api.openapi`)."""
    app = FastAPI(
        title="Slurm job broker",
        version=__version__,
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=f"{PREFIX}/docs",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        lifespan=_lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # `broker.metrics` instead
    )
    problems.install(app)
    app.include_router(health.router)
    for router in (*_domains(), pipelines_router, identity_router, clusters.router, audit_router):
        app.include_router(router, prefix=PREFIX)
    openapi.install(app)
    return app


def _domains() -> list[APIRouter]:
    names = ("broker.runs.routes", "broker.models.routes")
    return [import_module(name).router for name in names if find_spec(name)]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = app.state.threads
    yield
