"""The application: every router, and what surrounds them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI

from broker import __version__
from broker.api import audit, clusters, compile, gpu_jobs, health, openapi, problems
from broker.api.middleware import JSON_LIMIT, RequestScope
from broker.context import Context
from broker.identity.routes import router as identity_router
from broker.identity.sessions import Authenticator
from broker.identity.throttle import LoginThrottle
from broker.identity.tokens import TokenSigner, load_key
from broker.models.routes import router as models_router
from broker.pipelines.routes import router as pipelines_router
from broker.pipelines.upload_routes import router as uploads_router
from broker.queueing.routes import router as queue_router
from broker.runs.routes import router as runs_router

PREFIX = "/api/v1"
UPLOADS = f"{PREFIX}/uploads"


def create_app(ctx: Context) -> FastAPI:
    """The API of one broker; makes the signing key of its tokens when there is none yet."""
    settings = ctx.settings
    app = make_app()
    app.state.context = ctx
    app.state.threads = settings.api.threads
    app.state.throttle = LoginThrottle(ctx.db)
from broker.tenancy.routes import router as tenancy_router
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
        redirect_slashes=False,
        swagger_ui_oauth2_redirect_url=None,
        lifespan=_lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # `broker.metrics` instead
    )
    problems.install(app)
    app.include_router(health.router)
    for router in (
        runs_router,
        queue_router,
        gpu_jobs.router,
        models_router,
        pipelines_router,
        compile.router,
        uploads_router,
        clusters.router,
        identity_router,
        audit.router,
    ):
        app.include_router(router, prefix=PREFIX)
    openapi.install(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = app.state.threads
    yield
        tenancy_router,
