"""Every setting of the broker, typed and described. `docs/settings.md` is generated from this package.

Values come, first found wins, from: keyword arguments, environment variables (`BROKER_…`, `__` between
levels: `BROKER_S3__BUCKET`), the TOML file named by `BROKER_CONFIG_FILE` (default `broker.toml` in the
working directory, if there is one), the defaults below. Secrets are files (0600), never values: see
`SecretFile`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from broker.errors import ConfigurationError, InvalidRequest, Problem
from broker.settings.base import PriorityClass, RoleName, SecretFile, read_secret
from broker.settings.clusters import ClassSettings, ClusterSettings
from broker.settings.figures import (
    AccountingSettings,
    BadEnd,
    CostSettings,
    ReportExportSettings,
    ReportSettings,
    ResourceSettings,
)
from broker.settings.services import (
    ApiSettings,
    ApprovalSettings,
    ChatSettings,
    News,
    NotificationSettings,
    OidcSettings,
    QuotaSettings,
    S3Settings,
)

__all__ = [
    "CONFIG_FILE_VARIABLE",
    "AccountingSettings",
    "ApiSettings",
    "ApprovalSettings",
    "BadEnd",
    "ChatSettings",
    "ClassSettings",
    "ClusterSettings",
    "CostSettings",
    "News",
    "NotificationSettings",
    "OidcSettings",
    "PriorityClass",
    "QuotaSettings",
    "ReportExportSettings",
    "ReportSettings",
    "ResourceSettings",
    "RoleName",
    "S3Settings",
    "SecretFile",
    "Settings",
    "read_secret",
]

CONFIG_FILE_VARIABLE = "BROKER_CONFIG_FILE"


class Settings(BaseSettings):
    """The whole configuration of one broker."""

    model_config = SettingsConfigDict(
        env_prefix="BROKER_", env_nested_delimiter="__", extra="forbid", frozen=True, toml_file=None
    )

    environment: str = Field(
        "dev", pattern=r"^[a-z0-9]{1,12}$", description="First part of every Slurm job name"
    )
    data_dir: Path = Field(Path("var"), description="Folder of everything the broker keeps on its own disk")
    database_url: str | None = Field(
        None, description="SQLAlchemy URL; unset: SQLite in `data_dir`. PostgreSQL: `postgresql+psycopg://…`"
    )
    log_format: Literal["json", "console"] = Field("json", description="Form of the log lines on stderr")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged")
    metrics_public: bool = Field(False, description="Whether `/metrics` answers without a token")
    worker_metrics_host: str = Field(
        "127.0.0.1", description="Address at which a worker shows its metrics; no token is asked for there"
    )
    worker_metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of it (0: a free one); unset: none. Under `broker up` the API shows both",
    )
    max_concurrent_runs: int = Field(10, ge=1, description="Submissions and collections at once, per worker")
    lease_s: float = Field(30, ge=3, description="A worker that is silent this long loses its cluster")
    default_cluster: str | None = Field(None, description="Cluster of runs that name none")
    default_image: str | None = Field(
        None, description="Image (`registry/name:tag`, or a `.sif` path) of `/gpu-jobs` that name none"
    )
    clusters: dict[str, ClusterSettings] = Field({}, description="Clusters by name")
    s3: S3Settings = Field(default_factory=S3Settings, description="Object store")
    api: ApiSettings = Field(default_factory=ApiSettings, description="REST server")
    oidc: OidcSettings = Field(default_factory=OidcSettings, description="Single sign-on")
    quotas: QuotaSettings = Field(default_factory=QuotaSettings, description="Quotas and limits")
    accounting: AccountingSettings = Field(
        default_factory=AccountingSettings, description="The warehouse of all jobs"
    )
    reports: ReportSettings = Field(
        default_factory=ReportSettings, description="Reports that are written to the object store"
    )
    costs: CostSettings = Field(default_factory=CostSettings, description="What use costs")
    notifications: NotificationSettings = Field(
        default_factory=NotificationSettings, description="Telling people"
    )
    resources: ResourceSettings = Field(
        default_factory=ResourceSettings, description="Use of the clusters over time"
    )
    approval: ApprovalSettings = Field(
        default_factory=ApprovalSettings, description="Thresholds above which a run waits for approval"
    )

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then the TOML file (GC-09)."""
        file = Path(os.environ.get(CONFIG_FILE_VARIABLE, "broker.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)

    @property
    def sqlalchemy_url(self) -> str:
        """The database to open."""
        return self.database_url or f"sqlite:///{self.data_dir / 'broker.sqlite3'}"

    def cluster_name(self, wanted: str | None) -> str:
        """The cluster of a run: the one it names, else the default, else the only one."""
        only = next(iter(self.clusters)) if len(self.clusters) == 1 else None
        if wanted is not None and wanted not in self.clusters:
            known = ", ".join(self.clusters) or "none is configured"
            detail = f"There is no cluster {wanted!r}; known: {known}"
            raise InvalidRequest(detail, problems=[Problem("/cluster", "unknown_cluster", detail)])
        name = wanted or self.default_cluster or only
        if name is None:
            raise ConfigurationError(
                "No cluster was named and there is no default: set `default_cluster`, or name one of: "
                + (", ".join(self.clusters) or "none is configured; see docs/operations.md")
            )
        return name
