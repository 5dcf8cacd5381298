"""Structured logs on stderr: JSON lines, or coloured text for a person (`log_format`).

Everything goes one way, the libraries' own `logging` too. Within a request every line carries `request_id`
and `user`. The events that DD-15 names are `Event`s; other events are plain words.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from typing import Any, Literal

import structlog


class Event(StrEnum):
    """Events of a job's life that programs may wait for in the log (DD-15); `runs.journal` writes them.

    All have job_id, process_id (the Slurm job id), run_id, component, attempt, and the request_id behind.
    """

    JOB_SUBMITTED = "job_submitted"
    """user_id, gpu_count, estimated_duration (seconds: the time limit)"""
    JOB_STARTED = "job_started"
    """cluster_path, nodes"""
    JOB_COMPLETED = "job_completed"
    """duration (seconds), final_metrics"""
    JOB_FAILED = "job_failed"
    """duration, state, reason, exit_code"""
    JOB_CANCELLED = "job_cancelled"
    """duration"""
    RESULTS_STORED = "results_stored"
    """files, bytes"""


def configure_logging(format: Literal["json", "console"] = "json", level: str = "info") -> None:
    """Set the process's logging up; the last call wins."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.stdlib.ExtraAdder(),
    ]
    last: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
        if format == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,  # the rich one prints locals: secrets
            )
        ]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in (
        "alembic",
        "botocore",
        "boto3",
        "urllib3",
        "s3transfer",
        "paramiko",
        "sqlalchemy",
        "uvicorn.access",
    ):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
