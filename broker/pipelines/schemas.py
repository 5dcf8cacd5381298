"""What the API says about pipelines and uploads."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class PipelineView(BaseModel):
    """A pipeline in a list. `pipeline_id` is the spec's own id, `id` the broker's."""

    id: str
    pipeline_id: str
    name: str
    tenant: str
    owner: str = Field(description="User name")
    latest_version: int
    created_at: datetime
    updated_at: datetime


class VersionSummary(BaseModel):
    """A version in a list."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    number: int
    content_hash: str
    spec_version: str = Field(description="The `version` that the spec gives itself")
    created_at: datetime


class VersionView(VersionSummary):
    """A version in full: `spec` is what was sent."""

    pipeline_id: str = Field(description="The broker's id of the pipeline")
    spec: dict[str, Any]


class SpecProblem(BaseModel):
    """One thing wrong, or remarkable, in a spec."""

    model_config = ConfigDict(from_attributes=True)

    pointer: str = Field(description="JSON pointer into the spec")
    code: str
    detail: str


class NeedsApproval(BaseModel):
    """A component that reaches a threshold, so that its run waits for approval."""

    model_config = ConfigDict(from_attributes=True)

    component: str
    resource: Literal["gpu_count", "memory_mib"]
    requested: int = Field(description="GPUs, or MiB, over all nodes of the component")
    threshold: int


class StoredVersion(BaseModel):
    """What storing a spec gave."""

    pipeline: PipelineView
    version: VersionSummary
    created: bool = Field(description="False: the newest version has this content already")
    warnings: list[SpecProblem] = Field(description="What runs, but not quite as written")


class Validation(BaseModel):
    """What a check of a spec found."""

    valid: bool
    problems: list[SpecProblem]
    warnings: list[SpecProblem]
    defaults: dict[str, Any] | None = Field(
        description="Per-component maxima, to begin a run's resources with (WR-02); null while invalid"
    )
    content_hash: str | None
    needs_approval: list[NeedsApproval] = Field(
        description="Components because of which a run would wait for approval; empty: it would start at once"
    )


class UploadView(BaseModel):
    """Uploaded code: give `upload_id` in a component's `code`."""

    upload_id: str
    sha256: str = Field(description="Of what was sent")
    size: int = Field(description="Of what was sent, bytes")
    files: int
    created_at: datetime
