"""How every route is asked, and who may: the people of the access matrix and one declaration per route."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from broker.identity import Role
from tests.api_support import spec
from tests.tenants import OURS, archive

Audience = Callable[[str], bool]
OWNER, BOSS = f"{OURS}-owner", f"{OURS}-boss"
PEOPLE = {f"{OURS}-{role}": role for role in (Role.RESEARCHER, Role.VIEWER, Role.INTERNAL)}
ROLES = {"root": Role.ADMIN, BOSS: Role.TENANT_ADMIN, OWNER: Role.RESEARCHER} | PEOPLE


def everybody(_who: str) -> bool:
    return True


def admins(who: str) -> bool:
    return who == "root"


def owner(who: str) -> bool:
    return who in ("root", OWNER)


def leaders(who: str) -> bool:
    return who in ("root", BOSS)


def owner_and_leaders(who: str) -> bool:
    return owner(who) or leaders(who)


def of_run(who: str) -> bool:
    """Who sees a run: its owner, and who looks at the whole tenant."""
    return owner_and_leaders(who) or ROLES[who] is Role.VIEWER


@dataclass(frozen=True, slots=True)
class Probe:
    """How one route is asked.

    `sees`: who of the own tenant may know of the object; the others, and another tenant's people, get
    `hidden`. `acts`: who of those may do it; the others get 403. `good`: the answer to who may. `of`: which
    of a tenant's things stands for a parameter of the path. `body`, `query`: `$name` stands for one as well.
    `lists`: the answer to an admin shows both tenants' things.
    """

    sees: Audience = everybody
    acts: Audience = everybody
    good: int | tuple[int, ...] = 200
    hidden: int = 404
    of: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    lists: bool = False
    note: str = ""


RUN = Probe(sees=of_run)
TENANT = Probe()
HOOK = Probe(sees=leaders)
LIST = Probe(lists=True)
REPORT = Probe(hidden=200, lists=True)
DOCUMENT = json.dumps(spec(pipeline_id="new", name="new")).encode()
DONE = {"run_id": "done"}
LARGE = {"run_id": "large"}
REASON = {"reason": "because"}
SIGN_ON = Probe(good=(404, 422, 503), note="no provider is configured; test_oidc asks a real one")
CLUSTER = Probe(good=(422, 500, 502, 503), note="no Slurm answers here; tests/cluster ask a real one")

PROBES: dict[str, Probe | tuple[Probe, ...]] = {
    "GET /healthz": Probe(),
    "GET /readyz": Probe(good=(200, 503)),
    "GET /metrics": Probe(),
    "POST /api/v1/runs": Probe(good=201, body={"pipeline": "$pipeline"}),
    "GET /api/v1/runs": (LIST, Probe(query="?pipeline=$pipeline")),
    "GET /api/v1/runs/{run_id}": RUN,
    "POST /api/v1/runs/{run_id}/cancel": Probe(sees=of_run, acts=owner_and_leaders, good=202),
    "POST /api/v1/runs/{run_id}/retry": Probe(sees=of_run, acts=owner, good=202, of={"run_id": "failed"}),
    "GET /api/v1/runs/{run_id}/events": RUN,
    "GET /api/v1/runs/{run_id}/usage": RUN,
    "GET /api/v1/runs/{run_id}/events/stream": RUN,
    "GET /api/v1/runs/{run_id}/script": RUN,
    "GET /api/v1/runs/{run_id}/components/{component}/logs": Probe(sees=of_run, of=DONE),
    "GET /api/v1/runs/{run_id}/components/{component}/logs/lines": Probe(sees=of_run, of=DONE),
    "GET /api/v1/runs/{run_id}/components/{component}/logs/stream": Probe(sees=of_run, of=DONE),
    "GET /api/v1/runs/{run_id}/outputs": Probe(sees=of_run, of=DONE),
    "GET /api/v1/runs/{run_id}/advice": Probe(sees=of_run, of=DONE),
    "GET /api/v1/pipelines/{ref}/advice": TENANT,
    "POST /api/v1/pipelines/{ref}/advice": Probe(
        acts=owner,
        good=409,
        body={"version": 1},
        note="nothing is advised: no job of it is in accounting; test_advice_api applies some",
    ),
    "GET /api/v1/approvals": LIST,
    "GET /api/v1/approvals/{run_id}": Probe(sees=of_run, of=LARGE),
    "POST /api/v1/approvals/{run_id}/approve": Probe(of=LARGE),
    "POST /api/v1/approvals/{run_id}/reject": Probe(of=LARGE, body={"comment": "no"}),
    "GET /api/v1/queue": LIST,
    "GET /api/v1/runs/{run_id}/priority": RUN,
    "PUT /api/v1/runs/{run_id}/priority": Probe(good=202, body={"level": "high"}),
    "POST /api/v1/runs/{run_id}/hold": Probe(good=202, body=REASON),
    "POST /api/v1/runs/{run_id}/release": Probe(good=(202, 409), body=REASON),
    "POST /api/v1/gpu-jobs/submit": Probe(
        good=201,
        body={"job_name": "new", "image": {"registry": "registry.example.org/x", "tag": "1"}},
    ),
    "GET /api/v1/gpu-jobs": LIST,
    "GET /api/v1/gpu-jobs/{job_id}/status": RUN,
    "GET /api/v1/gpu-jobs/{job_id}/logs": RUN,
    "GET /api/v1/models": (LIST, Probe(query="?run=$done", hidden=200)),
    "GET /api/v1/models/{version_id}": TENANT,
    "GET /api/v1/models/{version_id}/download": TENANT,
    "POST /api/v1/pipelines": Probe(good=201, body=DOCUMENT),
    "GET /api/v1/pipelines": LIST,
    "POST /api/v1/pipelines/validate": Probe(body=DOCUMENT),
    "GET /api/v1/pipelines/{ref}": TENANT,
    "DELETE /api/v1/pipelines/{ref}": Probe(acts=owner, good=204),
    "GET /api/v1/pipelines/{ref}/versions": TENANT,
    "POST /api/v1/pipelines/{ref}/versions": Probe(
        acts=owner, good=201, body=spec(pipeline_id="$tenant-digits", name="again")
    ),
    "GET /api/v1/pipelines/{ref}/versions/{version}": TENANT,
    "POST /api/v1/pipelines/{ref}/versions/{version}/compile": Probe(body={}),
    "POST /api/v1/uploads": Probe(good=201, body=archive(), headers={"Content-Type": "application/gzip"}),
    "GET /api/v1/uploads/{upload_id}": TENANT,
    "GET /api/v1/clusters": Probe(),
    "GET /api/v1/reports": Probe(),
    "GET /api/v1/reports/{report}": (REPORT, Probe(hidden=200, query="?tenant=$tenant&user=$user")),
    "GET /api/v1/reports/{report}/jobs": (REPORT, Probe(hidden=200, query="?tenant=$tenant&user=$user")),
    "GET /api/v1/report-exports": Probe(),
    "POST /api/v1/report-exports": Probe(
        good=422,
        body={"name": "monthly", "period": "2026-09"},
        note="no export is set here; test_exports_asked asks for some",
    ),
    "GET /api/v1/costs": (
        Probe(hidden=200, lists=True),
        Probe(hidden=200, query="?tenant=$tenant&user=$user"),
        Probe(hidden=200, query="?tenant=$tenant&format=csv"),
    ),
    "GET /api/v1/runs/{run_id}/cost": RUN,
    "GET /api/v1/prices": Probe(),
    "POST /api/v1/prices": Probe(
        good=201, body={"resource": "core_hour", "amount": "1", "valid_from": "2100-01-01"}
    ),
    "DELETE /api/v1/prices/{price_id}": Probe(good=404, note="test_prices_api withdraws one that is there"),
    "POST /api/v1/prices/{price_id}/corrections": Probe(
        good=404,
        body={"amount": "1", "why": "mistyped"},
        note="test_corrections_api corrects one that is there",
    ),
    "GET /api/v1/resources": Probe(),
    "GET /api/v1/resources/nodes": LIST,
    "GET /api/v1/resources/history": (
        Probe(),
        Probe(query="?by=tenant", lists=True),
        Probe(query="?by=tenant&name=$tenant"),
    ),
    "GET /api/v1/clusters/{name}/sync": CLUSTER,
    "POST /api/v1/clusters/{name}/sync": CLUSTER,
    "POST /api/v1/auth/login": Probe(good=401, body={"username": "nobody", "password": "x"}),
    "POST /api/v1/auth/refresh": Probe(good=401, body={"refresh_token": "x"}),
    "POST /api/v1/auth/logout": Probe(good=401, body={"refresh_token": "x"}),
    "POST /api/v1/auth/password": Probe(good=422, body={"old": "x", "new": "another-long-password"}),
    "GET /api/v1/auth/me": Probe(),
    "GET /api/v1/auth/oidc": Probe(),
    "GET /api/v1/auth/oidc/login": SIGN_ON,
    "GET /api/v1/auth/oidc/callback": SIGN_ON,
    "POST /api/v1/auth/oidc/token": SIGN_ON,
    "GET /api/v1/users": LIST,
    "POST /api/v1/users": Probe(good=201, hidden=422, body={"username": "new", "tenant": "$tenant"}),
    "GET /api/v1/users/{user}": TENANT,
    "PATCH /api/v1/users/{user}": (
        Probe(body={"active": False}),
        Probe(body={"password": "a-new-one-time-password"}),
        Probe(acts=admins, body={"unix_account": "kim"}),
        Probe(acts=admins, body={"role": "admin"}),
    ),
    "GET /api/v1/users/{user}/identities": TENANT,
    "DELETE /api/v1/users/{user}/identities": Probe(
        good=404, note="nobody signs on as it; test_oidc unlinks a linked one"
    ),
    "GET /api/v1/keys": (Probe(), Probe(sees=owner_and_leaders, query="?user=$user")),
    "POST /api/v1/keys": Probe(good=201, body={"name": "new"}),
    "DELETE /api/v1/keys/{key_id}": Probe(sees=owner_and_leaders, good=204),
    "GET /api/v1/tenants": LIST,
    "POST /api/v1/tenants": Probe(good=201, body={"name": "new"}),
    "GET /api/v1/tenants/{name}": TENANT,
    "PATCH /api/v1/tenants/{name}": Probe(body={"fairshare": 7}),
    "GET /api/v1/tenants/{name}/quota": TENANT,
    "PUT /api/v1/tenants/{name}/quota": Probe(body={"api_calls_per_day": 10**9}),
    "GET /api/v1/tenants/{name}/usage": TENANT,
    "GET /api/v1/quotas": LIST,
    "GET /api/v1/limits": Probe(),
    "GET /api/v1/audit": (
        LIST,
        Probe(hidden=200, query="?tenant=$tenant"),
        Probe(hidden=200, query="?object_id=$run"),
        Probe(hidden=200, query="?actor=$user"),
    ),
    "GET /api/v1/audit/export": (LIST, Probe(hidden=200, query="?tenant=$tenant")),
    "GET /api/v1/notifications": LIST,
    "GET /api/v1/notifications/stream": Probe(headers={"Last-Event-ID": "0"}, lists=True),
    "GET /api/v1/notifications/preferences": Probe(),
    "PUT /api/v1/notifications/preferences": Probe(body={"language": "ko"}),
    "GET /api/v1/notifications/preferences/{tenant}": TENANT,
    "PUT /api/v1/notifications/preferences/{tenant}": Probe(body={"language": "ko"}),
    "GET /api/v1/notifications/deliveries": LIST,
    "GET /api/v1/notifications/deliveries/{delivery_id}": HOOK,
    "POST /api/v1/notifications/deliveries/{delivery_id}/retry": Probe(sees=leaders, good=202),
    "GET /api/v1/webhooks": LIST,
    "POST /api/v1/webhooks": Probe(
        good=201, hidden=422, body={"url": "https://hooks.example.org/new", "tenant": "$tenant"}
    ),
    "GET /api/v1/webhooks/{webhook_id}": HOOK,
    "PATCH /api/v1/webhooks/{webhook_id}": Probe(sees=leaders, body={"active": False}),
    "DELETE /api/v1/webhooks/{webhook_id}": Probe(sees=leaders, good=204),
    "POST /api/v1/webhooks/{webhook_id}/rotate": HOOK,
    "POST /api/v1/webhooks/{webhook_id}/test": Probe(sees=leaders, good=202),
    "GET /api/v1/webhooks/{webhook_id}/deliveries": HOOK,
}
# Web sockets have no route to ask: tests/contract/notifications and .../watching try them.
SOCKETS = {"/api/v1/notifications/ws", "/api/v1/runs/{run_id}/components/{component}/logs/ws"}

# Which of a tenant's things stands for a parameter of the path, unless the probe says another.
STANDS_FOR = {
    "run_id": "run",
    "job_id": "gpu_job",
    "version_id": "model",
    "ref": "pipeline",
    "upload_id": "upload",
    "user": "user",
    "key_id": "key",
    "name": "tenant",
    "tenant": "tenant",
    "delivery_id": "delivery",
    "webhook_id": "webhook",
}
# What a parameter is that no tenant has one of its own of.
FIXED = {"price_id": "price-0", "component": "trainer", "version": "1", "report": "usage"}
