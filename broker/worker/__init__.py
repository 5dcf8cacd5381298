"""The worker: what happens to runs between requests. One process; one active worker per cluster."""

from broker.worker.loop import run

__all__ = ["run"]
