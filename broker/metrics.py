"""Prometheus metrics: those that DD-14 names, and the broker's own (`broker_…`).

`GET /metrics` shows those of one process; under `broker up`, which sets `PROMETHEUS_MULTIPROC_DIR`, those of
API and worker together (prometheus-client's multiprocess mode). A gauge then shows who set it last. A worker
by itself shows its own on `worker_metrics_port` (`broker.worker.exposing`).

What Prometheus sees for the first time has no past: the first error of a kind would be no increase. Series
whose labels are known beforehand therefore begin at 0, with the worker (`begin`).
"""

from __future__ import annotations

import os
from typing import Final

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from broker.errors import (
    BrokerError,
    ConfigurationError,
    DiskFull,
    OutcomeUnknown,
    SlurmRefused,
    Unreachable,
)

_LONG = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 48 * 3600)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_TRANSFER = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
_DAYS = (60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 3 * 24 * 3600, 7 * 24 * 3600)

JOBS_SUBMITTED: Final = Counter("gpu_jobs_submitted_total", "Jobs given to Slurm", ["cluster"])
JOBS_COMPLETED: Final = Counter("gpu_jobs_completed_total", "Jobs that ended well", ["cluster"])
JOBS_FAILED: Final = Counter("gpu_jobs_failed_total", "Jobs that failed", ["cluster", "state"])
JOB_DURATION: Final = Histogram(
    "gpu_job_duration_seconds", "From a job's start to its end", ["cluster"], buckets=_LONG
)
TRANSFER_DURATION: Final = Histogram(
    "file_transfer_duration_seconds", "Of moving a job's files", ["direction"], buckets=_TRANSFER
)
JOBS_ACTIVE: Final = Gauge(
    "gpu_jobs_active", "Jobs that wait or run", ["cluster"], multiprocess_mode="mostrecent"
)
CONNECTIONS_ACTIVE: Final = Gauge(
    "cluster_connections_active", "Open channels to a login node", ["cluster"], multiprocess_mode="mostrecent"
)
USER_JOBS: Final = Counter("user_jobs_total", "Jobs given to Slurm, by user", ["user_id"])
GPU_HOURS: Final = Counter("gpu_hours_total", "GPUs allocated, times hours", ["cluster", "gpu_type"])
MODEL_ACCURACY: Final = Gauge(
    "model_final_accuracy",
    "`accuracy` of a pipeline's newest model",
    ["pipeline"],
    multiprocess_mode="mostrecent",
)
TRAINING_LOSS: Final = Gauge(
    "training_final_loss", "`loss` of a pipeline's newest model", ["pipeline"], multiprocess_mode="mostrecent"
)

HTTP_REQUESTS: Final = Counter(
    "broker_http_requests_total", "Requests answered", ["method", "route", "status"]
)
HTTP_SECONDS: Final = Histogram(
    "broker_http_request_seconds", "Time to answer a request", ["route"], buckets=_SHORT
)
STREAMS_OPEN: Final = Gauge(
    "broker_streams_open", "Live streams and WebSockets that are open", multiprocess_mode="livesum"
)
RUNS: Final = Counter("broker_runs_total", "Runs that ended, by how", ["cluster", "state"])
SUBMISSION_SECONDS: Final = Histogram(
    "broker_submission_seconds", "From a run's request to its last job id", ["cluster"], buckets=_TRANSFER
)
SUBMISSION_FAILURES: Final = Counter(
    "broker_submission_failures_total",
    "Tries to submit a run that failed, by error and by who can mend it (caller, admin, time)",
    ["cluster", "code", "mender"],
)
APPROVAL_WAIT: Final = Histogram(
    "broker_approval_wait_seconds", "From a request for approval to its decision", ["decision"], buckets=_DAYS
)
SSH_WAITING: Final = Gauge(
    "broker_ssh_waiting",
    "Commands and transfers that wait for a channel to a login node, as of the last look at the cluster",
    ["cluster"],
    multiprocess_mode="mostrecent",
)
POLL_FAILURES: Final = Counter("broker_poll_failures_total", "Looks at a cluster that failed", ["cluster"])
POLLED_AT: Final = Gauge(
    "broker_poll_timestamp_seconds",
    "When a cluster was last seen, Unix time",
    ["cluster"],
    multiprocess_mode="mostrecent",
)
OUTCOME_UNKNOWN: Final = Counter(
    "broker_outcome_unknown_total",
    "Side effects whose answer was lost (then looked up, never repeated)",
    ["operation"],
)
STORED_BYTES: Final = Counter(
    "broker_stored_bytes_total", "Bytes of outputs and logs stored in S3", ["cluster"]
)
STORE_FAILURES: Final = Counter(
    "broker_store_failures_total", "Tries to store outputs that failed", ["cluster"]
)
SLURM_SECONDS: Final = Histogram(
    "broker_slurm_call_seconds", "Time of one call to a cluster", ["cluster", "operation"], buckets=_TRANSFER
)
SLURM_ERRORS: Final = Counter(
    "broker_slurm_errors_total", "Calls to a cluster that failed, by error", ["cluster", "operation", "code"]
)
ACCOUNTING_READ_TO: Final = Gauge(
    "broker_accounting_timestamp_seconds",
    "Up to when a cluster's accounting was read, Unix time: the collector's lag is the time since",
    ["cluster"],
    multiprocess_mode="mostrecent",
)
ACCOUNTING_JOBS: Final = Counter(
    "broker_accounting_jobs_total", "Jobs that accounting told of, again ones included", ["cluster"]
)
ACCOUNTING_BAD_ROWS: Final = Counter(
    "broker_accounting_bad_rows_total", "Rows of accounting that were not understood", ["cluster"]
)
ACCOUNTING_FAILURES: Final = Counter(
    "broker_accounting_failures_total", "Looks at accounting that failed, by error", ["cluster", "code"]
)
ACCOUNTING_RUNAWAYS: Final = Gauge(
    "broker_accounting_runaways",
    "Jobs without an end that are not in the queue",
    ["cluster"],
    multiprocess_mode="mostrecent",
)
REPORT_EXPORTS: Final = Counter(
    "broker_report_exports_total", "Versions of scheduled reports written to the object store", ["export"]
)
REPORT_EXPORT_FAILURES: Final = Counter(
    "broker_report_export_failures_total",
    "Tries to write a scheduled report that failed, by error",
    ["export", "code"],
)
RUNS_GPU_IDLE: Final = Gauge(
    "broker_runs_gpu_idle",
    "Runs with running jobs that leave GPUs idle, as measured",
    ["cluster"],
    multiprocess_mode="mostrecent",
)
GPUS_HELD_IDLE: Final = Gauge(
    "broker_gpus_held_idle",
    "GPUs that running jobs hold and leave idle, as measured",
    ["cluster"],
    multiprocess_mode="mostrecent",
)
WORKER_DEFECTS: Final = Counter("broker_worker_defects_total", "Unexpected exceptions in the worker's loops")
LEASES_LOST: Final = Counter("broker_leases_lost_total", "Leases another worker took over", ["cluster"])
AUDIT_SEALED: Final = Counter("broker_audit_sealed_total", "Rows of the audit trail that got their seal")
SIGN_ONS: Final = Counter(
    "broker_sign_ons_total", "Single sign-ons that came back, by how they ended", ["result"]
)
DELIVERIES: Final = Counter(
    "broker_deliveries_total",
    "Tries to deliver a notice, by how they ended (delivered, failed, dead, skipped)",
    ["channel", "result"],
)


def begin(cluster: str) -> None:
    """A cluster has a worker: what may be counted of it begins at 0; the first event is then an increase."""
    for counter in (JOBS_SUBMITTED, JOBS_COMPLETED, POLL_FAILURES, STORE_FAILURES, STORED_BYTES, LEASES_LOST):
        counter.labels(cluster)
    for error in (BrokerError, ConfigurationError, SlurmRefused, Unreachable, DiskFull, OutcomeUnknown):
        SUBMISSION_FAILURES.labels(cluster, error.code, error.mender)


def exposition(*more: Collector) -> bytes:
    """Everything in Prometheus' text format, and what `more` finds (under names of its own).

    Of all processes where they share a folder (`PROMETHEUS_MULTIPROC_DIR`), else of this one.
    """
    ours: CollectorRegistry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        ours = CollectorRegistry()
        MultiProcessCollector(ours)  # type: ignore[no-untyped-call]
    found = CollectorRegistry()
    for collector in more:
        found.register(collector)
    return generate_latest(ours) + generate_latest(found)
