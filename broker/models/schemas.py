"""What the API says about models."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field


class ModelSummary(BaseModel):
    """A model version in a list (MD-02). `READY`: a version exists once it is verified."""

    id: str
    model_id: str
    name: str
    version: int
    state: Literal["READY"]
    size: int = Field(description="Bytes of all its files")
    files: int
    metrics: dict[str, Any] | None
    run_id: str
    run_number: int
    workload: str = Field(description="Name of the pipeline that was run")
    component: str
    owner: str
    tenant: str
    created_at: datetime


class ModelFile(BaseModel):
    """One stored file of a model version."""

    path: str
    size: int
    sha256: str
    key: str


class ModelDetail(ModelSummary):
    """Everything about a model version (MD-03)."""

    artifact: str = Field(description="Path of the model file among `artifacts`")
    spec: dict[str, Any] = Field(description="The original spec")
    training: dict[str, Any] = Field(description="Params, resources, image, overrides it was trained with")
    artifacts: list[ModelFile]
    logs: list[ModelFile]
    refused: list[dict[str, str]] = Field(description="What was found beside them and not stored, and why")
    manifest_key: str
    manifest_sha256: str


class DownloadFile(ModelFile):
    """A stored file with a presigned URL."""

    url: str
    expires_s: int


class Download(BaseModel):
    """Where to fetch a model version's files; no token needed, the URLs expire."""

    id: str
    files: list[DownloadFile]
