"""What the API says about quotas."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, Field

from broker.text import RequestModel


class QuotaChange(RequestModel):
    """A tenant's own quota, whole: what is left out or null is the setting's."""

    api_calls_per_day: int | None = Field(None, ge=0, le=10**12)
    gpu_hours_per_month: float | None = Field(None, ge=0, le=10**9)
    upload_gb_per_month: float | None = Field(None, ge=0, le=10**9, description="GiB")
    max_gpus: int | None = Field(None, ge=0, le=10**6, description="GPUs at once (Slurm's `GrpTRES`)")


class Meter(BaseModel):
    """How much of something is used."""

    limit: float
    used: float = Field(description="GPU hours: settled from accounting")
    reserved: float = Field(description="GPU hours: set aside for released jobs that are not settled")
    percent: float = Field(description="(used + reserved) / limit; 100 where the limit is 0")
    period: str
    resets_at: datetime


class QuotaView(BaseModel):
    """A tenant's quota and what is used of it. Its `ETag` is `version`."""

    tenant: str
    own: QuotaChange = Field(description="The tenant's own numbers; null: the setting's")
    api_calls: Meter
    gpu_hours: Meter
    upload_gb: Meter
    max_gpus: int | None
    version: int


class UserMeter(BaseModel):
    """How many runs a person has asked for."""

    limit: int
    used: int


class OwnLimits(BaseModel):
    """One's own limits, and one's tenant's quota."""

    active_runs: UserMeter
    runs_last_hour: UserMeter
    runs_today: UserMeter = Field(description="Begins anew at 00:00 UTC")
    max_run_hours: float = Field(description="Longest time limit of a component of a training run")
    tenant: QuotaView


class UserUsage(BaseModel):
    """What one person used."""

    username: str
    gpu_hours: float
    attempts: int = Field(description="Attempts of jobs, requeues counted")


class UsageView(BaseModel):
    """What a tenant used in a month."""

    tenant: str
    month: str
    gpu_hours: float = Field(description="Settled from accounting")
    gpu_hours_reserved: float
    gpu_seconds: int
    upload_gb: float
    api_calls: dict[str, int] = Field(description="By day")
    users: Sequence[UserUsage] = Field(description="Most first")
