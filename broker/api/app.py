"""The application: every router, and what surrounds them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import structlog
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from broker import __version__
from broker.advice.routes import router as advice_router
from broker.api import audit, clusters, compile, gpu_jobs, health, openapi, problems
from broker.api.limits import router as limits_router
from broker.api.middleware import JSON_LIMIT, RequestScope
from broker.api.streams import OpenStreams
from broker.approvals.routes import router as approvals_router
from broker.context import Context
from broker.costs.routes import router as costs_router
from broker.identity.key_routes import router as keys_router
from broker.identity.oidc_routes import links_router, make_sign_on
from broker.identity.oidc_routes import router as sign_on_router
from broker.identity.routes import router as identity_router
from broker.identity.sessions import Authenticator
from broker.identity.tenant_routes import router as tenants_router
from broker.identity.throttle import LoginThrottle
from broker.identity.tokens import TokenSigner, load_key
from broker.models.routes import router as models_router
from broker.notifications.routes import router as notifications_router
from broker.notifications.webhook_routes import router as webhooks_router
from broker.pipelines.routes import router as pipelines_router
from broker.pipelines.upload_routes import router as uploads_router
from broker.queueing.routes import router as queue_router
from broker.quotas.meter import FLUSH_S, ApiMeter
from broker.quotas.routes import router as quotas_router
from broker.reports.export_routes import router as exports_router
from broker.reports.routes import router as reports_router
from broker.resources.routes import router as resources_router
from broker.runs.log_routes import router as logs_router
from broker.runs.routes import router as runs_router
from broker.tenancy.routes import router as tenancy_router

log = structlog.get_logger("broker.api")
PREFIX = "/api/v1"
UPLOADS = f"{PREFIX}/uploads"


def create_app(ctx: Context) -> FastAPI:
    """The API of one broker; makes the signing key of its tokens when there is none yet."""
    settings = ctx.settings
    app = make_app()
    app.state.context = ctx
    app.state.threads = settings.api.threads
    app.state.meter = ApiMeter(ctx.db, settings.quotas)
    app.state.throttle = LoginThrottle(ctx.db)
    signer = TokenSigner(
        load_key(settings.data_dir), settings.api.access_token_minutes, settings.api.session_days
    )
    app.state.authenticator = Authenticator(ctx.db, signer)
    app.state.streams = OpenStreams(settings.api.streams_per_account)
    app.state.sign_on = make_sign_on(ctx, signer.key)
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
        logs_router,
        approvals_router,
        queue_router,
        gpu_jobs.router,
        models_router,
        pipelines_router,
        compile.router,
        uploads_router,
        clusters.router,
        resources_router,
        reports_router,
        exports_router,
        advice_router,
        costs_router,
        tenancy_router,
        identity_router,
        sign_on_router,
        links_router,
        keys_router,
        tenants_router,
        audit.router,
        quotas_router,
        limits_router,
        notifications_router,
        webhooks_router,
    ):
        app.include_router(router, prefix=PREFIX)
    openapi.install(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = app.state.threads
    meter: ApiMeter = app.state.meter
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_flush_calls, meter)
        yield
        tasks.cancel_scope.cancel()
    await run_in_threadpool(meter.flush)


async def _flush_calls(meter: ApiMeter) -> None:
    """Write the API calls that were counted, once a second."""
    while True:
        await anyio.sleep(FLUSH_S)
        try:
            await run_in_threadpool(meter.flush)
        except Exception:  # a defect must not end the server; what was counted is kept
            log.exception("calls_not_counted")
