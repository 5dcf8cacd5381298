"""Settings of what people meet: the object store, the REST server, single sign-on, approval, quotas, news."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from broker.settings.base import RoleName, SecretFile, Section


class S3Settings(Section):
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


class ApiSettings(Section):
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


class OidcSettings(Section):
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


class ApprovalSettings(Section):
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
    "run_stalled",
    "run_gpu_idle",
    "run_gpu_busy",
    "quota_80",
    "quota_100",
    "cluster_unreachable",
]
"""What people can be told of: `notifications.kinds.NEWS` (a test compares)."""


class ChatSettings(Section):
    """One room (Slack, Teams, …) that is told, through Apprise."""

    url_file: SecretFile = Field(description="File with the room's Apprise URL, token included (0600)")
    kinds: tuple[News, ...] = Field(
        ("cluster_unreachable",), description="Kinds it is told of (docs/notifications.md); empty: all"
    )
    tenants: tuple[str, ...] = Field((), description="Only notices of these tenants; empty: all")
    language: Literal["en", "ko"] = Field("en", description="Language of the messages")


class NotificationSettings(Section):
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


class QuotaSettings(Section):
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
