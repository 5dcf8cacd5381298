"""Every setting of the broker, typed and described. `docs/settings.md` is generated from this module.

Values come, first found wins, from: keyword arguments, environment variables (`BROKER_…`, `__` between
levels: `BROKER_S3__BUCKET`), the TOML file named by `BROKER_CONFIG_FILE` (default `broker.toml` in the
working directory, if there is one), the defaults below. Secrets are files (0600), never values: see
`SecretFile`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from broker.errors import ConfigurationError, InvalidRequest, Problem

SecretFile = Annotated[Path, Field(description="A file with the secret, readable by its owner alone (0600)")]

PriorityClass = Literal["urgent-inference", "inference", "fine-tuning", "training"]
"""How much work hurries (CD-03), the most urgent first."""

RoleName = Literal["admin", "tenant_admin", "internal", "researcher", "viewer"]

BadEnd = Literal[
    "BOOT_FAIL",
    "CANCELLED",
    "DEADLINE",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REQUEUED",
    "TIMEOUT",
]
"""How an attempt ends that did not complete (Slurm's states)."""

CONFIG_FILE_VARIABLE = "BROKER_CONFIG_FILE"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassSettings(_Section):
    """A priority class: what `broker cluster sync` sets on its QOS, and on that of its twin `…-approved`.

    The classes are `urgent-inference` (priority 1000, preempts the last two, for admins, tenants' admins and
    internal users), `inference` (700), `fine-tuning` (400) and `training` (100); what is not set here stays
    as it is for that class.
    """

    priority: int = Field(100, ge=0, description="Priority of the QOS; the highest weighs most (`sprio`)")
    max_wall_s: int = Field(
        24 * 3600,
        ge=0,
        description="Longest time of one start, seconds; 0: any. What asked for more is started again",
    )
    grace_s: int = Field(
        120, ge=0, description="Time between a preemption's signal and the end, to write a checkpoint in"
    )
    preempts: tuple[PriorityClass, ...] = Field((), description="Classes whose jobs give way to it")
    roles: tuple[RoleName, ...] = Field((), description="Roles that may ask for it; none named: everybody")


_CLASSES: Mapping[PriorityClass, Mapping[str, object]] = {
    "urgent-inference": {
        "priority": 1000,
        "max_wall_s": 0,
        "grace_s": 0,
        "preempts": ("fine-tuning", "training"),
        "roles": ("admin", "tenant_admin", "internal"),
    },
    "inference": {"priority": 700, "max_wall_s": 0, "grace_s": 0},
    "fine-tuning": {"priority": 400},
    "training": {"priority": 100},
}
"""What is particular to each class (CD-03, CD-05, CD-06)."""


def _with_defaults(given: object) -> object:
    """The four classes, each with what was set of it; names that are none are left for the complaint."""
    if not isinstance(given, Mapping) or not all(isinstance(one, Mapping) for one in given.values()):
        return given
    known = {name: {**own, **given.get(name, {})} for name, own in _CLASSES.items()}
    return known | {name: one for name, one in given.items() if name not in known}


class ClusterSettings(_Section):
    """One Slurm cluster: how to reach it and how jobs are asked for there."""

    transport: Literal["ssh", "local"] = Field(
        "ssh", description="`ssh` to a login node, or `local` where the broker runs on one itself"
    )
    ssh_host: str = Field("127.0.0.1", description="Login node")
    ssh_port: int = Field(22, ge=1, le=65535, description="Port of sshd on the login node")
    ssh_user: str = Field("broker", description="The service account: how the broker logs in")
    ssh_key_file: Path | None = Field(None, description="Private key of that account (0600)")
    ssh_known_hosts: Path | None = Field(
        None, description="Host keys that are trusted, in known_hosts(5) format; an unknown key is refused"
    )
    ssh_timeout_s: float = Field(30, gt=0, description="Time to connect and to open a channel, seconds")
    ssh_channels: int = Field(
        8, ge=2, le=64, description="Sessions at once over one connection; sshd allows 10 (`MaxSessions`)"
    )
    run_as: Literal["service", "user"] = Field(
        "service",
        description="Whose the jobs and their files are: the service account's, or each person's own Unix "
        "account's (by a sudoers rule, see docs/operations.md)",
    )
    base_path: str = Field(
        "/cluster/ml-jobs", pattern=r"^/[A-Za-z0-9._/-]+$", description="Shared folder for run directories"
    )
    image_dir: str = Field(
        "/cluster/images", pattern=r"^/[A-Za-z0-9._/-]+$", description="Shared cache of pulled images (SIF)"
    )
    code_roots: tuple[str, ...] = Field(
        (), description="Folders below which `code.path` and `.sif` images may lie; empty allows none"
    )
    partition: str | None = Field(None, description="Partition asked for; the cluster's default if unset")
    account: str | None = Field("default", description="Slurm account of runs without a tenant")
    qos: str | None = Field(
        None,
        description="QOS of jobs where `priority_classes` is off; the association's default if unset",
    )
    priority_classes: bool = Field(
        True,
        description="Whether each priority class has its QOS there (`broker cluster sync` makes them); "
        "without, every class is the same",
    )
    qos_prefix: str = Field(
        "", pattern=r"^[a-z0-9_-]{0,16}$", description="Before the names of the classes' QOS"
    )
    classes: Annotated[dict[PriorityClass, ClassSettings], BeforeValidator(_with_defaults)] = Field(
        default_factory=dict, validate_default=True, description="The priority classes by name"
    )
    gpu_types: dict[str, str] = Field(
        {}, description='GPU type in specs → GRES type, e.g. `{"A100": "a100"}`; default: lower case'
    )
    registry_mirrors: dict[str, str] = Field(
        {},
        description='Registry in specs → registry pulled from: `{"registry.example.org": "127.0.0.1:5000"}`',
    )
    insecure_registries: tuple[str, ...] = Field(
        (), description="Registries that speak plain HTTP (`apptainer pull --no-https`)"
    )
    path: str = Field(
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        description="`PATH` of batch scripts and of remote commands",
    )
    default_cpus: int = Field(1, ge=1, description="CPUs of a component that asks for none")
    level_nice: int = Field(
        20_000,
        ge=1,
        le=1_000_000_000,
        description="What one level (high, normal, low) is worth in Slurm's priority (`nice`). Above the sum "
        "of `PriorityWeightAge` and `PriorityWeightFairshare` a level outweighs both",
    )
    signal_before_s: int = Field(
        120, ge=0, le=65535, description="Warning signal this long before the time limit (`sbatch --signal`)"
    )
    poll_interval_s: float = Field(30, gt=0, description="Time between two looks at the queue")
    submit_timeout_s: float = Field(
        180, ge=30, description="How long a submission may take; sbatch itself may wait 120 s at MaxJobCount"
    )
    command_timeout_s: float = Field(30, gt=0, description="How long a query to Slurm may take")
    image_refresh_s: float = Field(
        60, ge=0, description="How long an image tag is taken to point at what it pointed at when last asked"
    )
    pull_timeout_s: float = Field(3600, gt=0, description="How long pulling one image may take")
    max_auto_retries: int = Field(
        2, ge=0, description="New attempts the broker makes by itself after failures that were the cluster's"
    )
    unknown_deadline_s: float = Field(
        3600, gt=0, description="A job that neither squeue, sacct nor its marker knows is given up after this"
    )
    watch_interval_s: float = Field(
        30, gt=0, description="Time between two looks at the progress and signs of life of running jobs"
    )
    heartbeat_timeout_s: float = Field(
        3600,
        ge=0,
        description="A running job whose progress, logs, outputs and checkpoints have not changed for so "
        "long is flagged as stalled; 0: never",
    )
    heartbeat_grace_s: float = Field(
        600, ge=0, description="How long after the flag what `on_lost_heartbeat` says happens"
    )
    on_lost_heartbeat: Literal["retry", "fail", "flag"] = Field(
        "retry",
        description="What becomes of a stalled job: ended and tried again (`max_auto_retries`), ended and "
        "failed, or only flagged",
    )
    log_limit_mib: int = Field(
        64, ge=1, description="Logs above this are stored as head and tail, the cut shown in the text"
    )
    keep_succeeded_days: float = Field(7, ge=0, description="Days a run directory stays after success")
    keep_failed_days: float = Field(30, ge=0, description="… and after failure, cancellation or rejection")
    prometheus_url: str | None = Field(
        None,
        pattern=r"^https?://[^?#\s]+$",
        description="Prometheus with the series of NVIDIA's dcgm-exporter: how busy GPUs are; unset: unknown",
    )
    usage_interval_s: float = Field(
        60, gt=0, description="Time between two looks at what running jobs use (one `sstat` per Unix account)"
    )
    gpu_sample_interval_s: int = Field(
        30,
        ge=0,
        le=3600,
        description="How often a job with GPUs writes down how busy they are (`nvidia-smi`, where its node "
        "has that); 0: never",
    )


class S3Settings(_Section):
    """The object store. Without `endpoint_url` the embedded one is started by `broker up`."""

    endpoint_url: str | None = Field(None, description="S3 endpoint; unset: the embedded object store")
    public_url: str | None = Field(None, description="Endpoint as clients see it, for presigned URLs")
    region: str = Field("us-east-1", description="Region used in signatures")
    bucket: str = Field("models", min_length=3, max_length=63, description="Bucket for results")
    access_key_file: SecretFile | None = Field(None, description="File with the access key")
    secret_key_file: SecretFile | None = Field(None, description="File with the secret key")
    embedded_port: int = Field(
        0, ge=0, le=65535, description="Port of the embedded store; 0: a free one, kept"
    )
    part_size_mib: int = Field(
        8,
        ge=5,
        le=1024,
        description="Part size of multipart uploads; one in progress takes five of them in memory",
    )
    cors_origins: tuple[str, ...] = Field((), description="Web origins that may use presigned URLs")
    presign_expires_s: int = Field(3600, ge=60, le=604800, description="Life of a presigned URL, seconds")
    stale_upload_hours: float = Field(24, gt=0, description="Multipart uploads older than this are aborted")


class ApiSettings(_Section):
    """The REST server."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0: a free one")
    access_token_minutes: float = Field(15, gt=0, description="Life of an access token (JWT)")
    session_days: float = Field(
        30, gt=0, description="Life of a login: how long refresh tokens give new access tokens"
    )
    key_days: int = Field(90, ge=1, description="Life of an API key that does not name its own")
    key_days_max: int = Field(366, ge=1, description="Longest life of an API key")
    max_body_mib: int = Field(256, ge=1, description="Largest request body (uploaded code)")
    threads: int = Field(40, ge=4, description="Requests handled at once")
    streams_per_account: int = Field(
        64, ge=1, description="Live streams and WebSockets that one account may have open at one API process"
    )
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Addresses of reverse proxies whose `X-Forwarded-For` tells the client's address"
    )


class OidcSettings(_Section):
    """Single sign-on through an OpenID Connect provider. Off without `issuer`."""

    issuer: str | None = Field(
        None,
        pattern=r"^(https://|http://(127\.0\.0\.1|localhost|\[::1\])(:|/|$))",
        description="The provider, exactly as it calls itself; https, but for one on this machine",
    )
    name: str = Field("single sign-on", max_length=64, description="The provider's name for people")
    client_id: str = Field("broker", description="The broker's own name at the provider")
    client_secret_file: SecretFile | None = Field(
        None, description="File (0600) with the client's secret; unset: a public client, PKCE alone"
    )
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/?#]+$",
        description="The broker's address as browsers see it; the provider must know "
        "`PUBLIC_URL/api/v1/auth/oidc/callback` as this client's redirect URI",
    )
    scopes: tuple[str, ...] = Field(("openid", "profile", "email"), description="Scopes asked for")
    username_claim: str = Field(
        "preferred_username", description="Claim with the user name of a new account; `a.b` looks into `a`"
    )
    groups_claim: str = Field(
        "groups", description="Claim with the groups; Keycloak's roles: `realm_access.roles`"
    )
    roles: dict[str, RoleName] = Field({}, description="Group → role; of several the strongest counts")
    tenants: dict[str, str] = Field({}, description="Group → tenant; of several the first one here counts")
    default_role: RoleName | None = Field(None, description="Role without such a group; unset: no access")
    default_tenant: str = Field("default", description="Tenant without such a group")
    link_by_username: bool = Field(
        False,
        description="Whether the first sign-on takes over an unlinked account of the same name; "
        "only where nobody chooses a name at the provider",
    )
    timeout_s: float = Field(10, gt=0, description="How long the provider may take to answer")


class ApprovalSettings(_Section):
    """What waits for a person's decision. Any one component that reaches a threshold makes its run wait."""

    gpu_count: int = Field(4, ge=1, description="GPUs of one component, over all its nodes")
    memory_gib: int = Field(128, ge=1, description="Memory of one component, over all its nodes, GiB")
    expires_days: float = Field(
        14, gt=0, description="A request that nobody decides, and an unused approval, end after this"
    )


News = Literal[
    "run_approval_requested",
    "run_decided",
    "run_started",
    "run_completed",
    "run_failed",
    "run_timed_out",
    "quota_80",
    "quota_100",
    "cluster_unreachable",
]
"""What people can be told of: `notifications.kinds.NEWS` (a test compares)."""


class ChatSettings(_Section):
    """One room (Slack, Teams, …) that is told, through Apprise."""

    url_file: SecretFile = Field(description="File with the room's Apprise URL, token included (0600)")
    kinds: tuple[News, ...] = Field(
        ("cluster_unreachable",), description="Kinds it is told of (docs/notifications.md); empty: all"
    )
    tenants: tuple[str, ...] = Field((), description="Only notices of these tenants; empty: all")
    language: Literal["en", "ko"] = Field("en", description="Language of the messages")


class NotificationSettings(_Section):
    """Telling people: webhooks, e-mail, chat."""

    email_url_file: SecretFile | None = Field(
        None,
        description="File (0600) with the mail server's Apprise URL: "
        "`mailtos://user:password@smtp.example.org?from=broker@example.org`; unset: no e-mail",
    )
    email_domains: tuple[str, ...] = Field(
        (), description="Domains that people's addresses may be in; empty: any"
    )
    chat: dict[str, ChatSettings] = Field({}, description="Chat rooms by name")
    allowed_networks: tuple[str, ...] = Field(
        (),
        description="Networks (`10.1.2.0/24`) that webhooks may reach although they are private; plain HTTP "
        "is allowed there alone",
    )
    ca_file: Path | None = Field(
        None, description="Certificates (PEM) that webhooks' servers are checked with; unset: the system's"
    )
    timeout_s: float = Field(15, gt=0, le=120, description="How long one delivery may take in all")
    concurrency: int = Field(8, ge=1, le=64, description="Deliveries at once; to one receiver only one")
    max_tries: int = Field(12, ge=1, le=100, description="A delivery is given up (`dead`) after this many")
    first_pause_s: float = Field(
        5, gt=0, description="Pause after the first failure; each further one is four times as long"
    )
    longest_pause_s: float = Field(6 * 3600, gt=0, description="… up to this")
    keep_days: float = Field(30, gt=0, description="Days that notices and their delivery log are kept")
    unreachable_after_s: float = Field(
        300, ge=0, description="A cluster that was not seen this long is told of, once per outage"
    )

    @field_validator("allowed_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(item)) for item in value)


class AccountingSettings(_Section):
    """The warehouse of all jobs that the reports are made of."""

    interval_s: float = Field(300, gt=0, description="Time between two looks at a cluster's accounting")
    overlap_s: int = Field(
        3600, ge=60, description="How late accounting may learn of a job; so much is read again each time"
    )
    history_days: int = Field(365, ge=0, description="How far back the first reading goes")
    sample_s: int = Field(
        30,
        ge=0,
        description="Time between two looks of Slurm at what jobs use (`JobAcctGatherFrequency`): advice "
        "takes no peak of a shorter job for all that it needs",
    )


class CostSettings(_Section):
    """What use costs. An admin enters prices with `broker prices set`."""

    currency: str = Field(
        "KRW",
        pattern=r"^[A-Z]{3}$",
        description="Currency of the prices (ISO 4217); those entered in another one do not hold",
    )
    exempt_outcomes: tuple[BadEnd, ...] = Field(
        (),
        description="Ends (Slurm's states) whose attempts are not charged: `NODE_FAIL`, `PREEMPTED`, …; "
        "holds for the past as well",
    )


ExportName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class ReportExportSettings(_Section):
    """One report that is written to the object store when a period (UTC) is over."""

    report: str = Field(description="Name of the report; `broker report` lists them")
    by: tuple[str, ...] = Field((), max_length=4, description="Dimensions; none: the report's own")
    period: Literal["day", "week", "month"] = Field(
        "month", description="What it is about: the last whole one"
    )
    formats: tuple[Literal["parquet", "csv", "json"], ...] = Field(
        ("parquet",), min_length=1, description="Formats of the files"
    )


class ReportSettings(_Section):
    """Reports that are written to the object store by themselves."""

    exports: dict[ExportName, ReportExportSettings] = Field(
        {}, description="Exports by name (a-z, 0-9, `-`), which is a part of the files' keys"
    )
    bucket: str | None = Field(
        None, min_length=3, max_length=63, description="Bucket, which exists; unset: the one for results"
    )
    prefix: str = Field(
        "reports", pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$", description="Before the files' keys"
    )
    hour: int = Field(
        6, ge=0, le=23, description="Hour (UTC) of the day after a period from which on it is written"
    )
    revise_days: int = Field(
        7,
        ge=0,
        description="Days after a period's end in which it is compared with new figures once a day; what has "
        "changed is written as a new version",
    )


class QuotaSettings(_Section):
    """What a tenant and a person may use. An admin sets one tenant's quota with `broker quota set`."""

    api_calls_per_day: int = Field(10_000, ge=0, description="API calls of a tenant a day (UTC)")
    gpu_hours_per_month: float = Field(100, ge=0, description="GPU hours of a tenant a month (UTC)")
    upload_gb_per_month: float = Field(50, ge=0, description="GiB that a tenant uploads a month (UTC)")
    active_runs_per_user: int = Field(3, ge=1, description="Runs of one person that have not ended")
    runs_per_hour: int = Field(5, ge=1, description="Runs that one person asks for within an hour")
    runs_per_day: int = Field(10, ge=1, description="Runs that one person asks for in a day (UTC)")
    internal_runs_per_day: int = Field(50, ge=1, description="… of an account with the role `internal`")
    max_run_hours: float = Field(36, gt=0, description="Longest time limit of a component of a training run")
    max_allowed_hours: float = Field(
        72, gt=0, description="Longest that a person's `max_training_hours` allows"
    )


class ResourceSettings(_Section):
    """What is kept of the use of clusters over time."""

    sample_interval_s: float = Field(
        300, ge=1, description="Time between two looks at the nodes that are kept; the last one always is"
    )
    raw_days: float = Field(7, gt=0, description="Days that each of these is kept")
    hourly_days: float = Field(366, gt=0, description="Days that the means of hours are kept")
    usage_raw_days: float = Field(
        2, gt=0, description="Days that each look at what a job used is kept; its hours stay `hourly_days`"
    )


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


def read_secret(path: Path) -> str:
    """The secret in `path`, without its last newline; a file that others can read is refused."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"The secret file {path} can't be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigurationError(f"The secret file {path} can be read by others: chmod 600 {path}")
    return text
