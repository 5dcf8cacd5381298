"""What the API says about the audit trail."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class AuditView(BaseModel):
    """One change: who, what, from where, before and after."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    at: datetime
    actor_id: str
    actor_name: str
    source_ip: str | None
    action: str = Field(description="`user.create`, `run.cancel`, …")
    object_type: str
    object_id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    note: str = Field(description="A comment, or Slurm's answer in its own words")
    tenant: str | None = Field(description="Whose administrator may read it; null: admins only")
