"""What the API says about accounts, tenants and keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from broker.errors import InvalidRequest, Problem
from broker.identity.permissions import Permission, Role
from broker.text import Line, Name, RequestModel

Username = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._@-]{0,62}$")]
TenantName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
UnixAccount = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
Password = Annotated[str, Field(max_length=1024)]
TrainingHours = Annotated[int, Field(ge=1, le=8760)]


def _not_root(name: str) -> str:
    if name == "root":
        raise ValueError("every cluster has the account root, above all others: choose another name")
    return name


class Change(RequestModel):
    """Base of a change: what is not sent stays."""

    def sent(self, *emptiable: str) -> dict[str, Any]:
        """The fields that were sent; raises `InvalidRequest` for null in any but the `emptiable` ones."""
        fields = self.model_dump(exclude_unset=True)
        if empty := [name for name, value in fields.items() if value is None and name not in emptiable]:
            detail = "Give a value or leave the field out"
            problems = [Problem(f"/{name}", "missing", detail) for name in empty]
            raise InvalidRequest("A field can't be emptied", problems=problems)
        return fields


class LoginRequest(RequestModel):
    """User name and password."""

    username: str = Field(max_length=64)
    password: Password


class TokenView(BaseModel):
    """An access token; send it as `Authorization: Bearer …`."""

    access_token: str
    token_type: str = "bearer"  # noqa: S105 - RFC 6750's word
    expires_in: int = Field(description="Life in seconds")
    refresh_token: str = Field(
        description="For `POST /auth/refresh`, once: each answer brings the next one. Keep it secret"
    )
    refresh_expires_in: int = Field(description="Seconds until a new login is needed")
    must_change_password: bool = Field(
        description="A one-time password: until it is changed only `/auth/password` and `/auth/me` answer"
    )


class RefreshRequest(RequestModel):
    """A refresh token."""

    refresh_token: str = Field(max_length=2048)


class PasswordChange(RequestModel):
    """One's own new password."""

    old: Password
    new: Password


class UserView(BaseModel):
    """An account. Its `ETag` is `version`."""

    id: str
    username: str
    display_name: str
    role: Role
    tenant: str
    active: bool
    must_change_password: bool
    unix_account: str | None
    max_training_hours: int | None = Field(
        description="Longest time limit this one may ask for; null: everybody's"
    )
    created_at: datetime
    updated_at: datetime
    version: int


class Me(UserView):
    """One's own account and what it may do."""

    permissions: list[Permission]


class UserCreate(RequestModel):
    """A new account. Its password, given or made, must be changed at the first login."""

    username: Username
    display_name: Line = ""
    role: Role = Role.RESEARCHER
    tenant: TenantName | None = Field(None, description="Unset: one's own tenant")
    unix_account: UnixAccount | None = Field(
        None, description='Unix account on the clusters, set by admins; never "root"'
    )
    max_training_hours: TrainingHours | None = Field(None, description="Set by admins")
    password: Password | None = Field(
        None, description="One-time password; unset: one is made and shown once"
    )


class UserCreated(UserView):
    """A new account, and the password when the broker made it: it is shown only here."""

    one_time_password: str | None


class UserChange(Change):
    """Fields to change; the others stay."""

    display_name: Line | None = None
    role: Role | None = None
    tenant: TenantName | None = None
    active: bool | None = None
    unix_account: UnixAccount | None = Field(
        None, description='Unix account on the clusters, set by admins; null: none; never "root"'
    )
    max_training_hours: TrainingHours | None = Field(
        None, description="Set by admins; null: everybody's limit holds"
    )
    password: Password | None = Field(None, description="A new one-time password")


class TenantView(BaseModel):
    """Who shares work, a quota and a part of the cluster. Its `ETag` is `version`."""

    name: str = Field(description="Also the name of the Slurm account")
    display_name: str
    fairshare: int
    active: bool
    created_at: datetime
    updated_at: datetime
    version: int


class TenantCreate(RequestModel):
    """A new tenant. `broker cluster sync` makes its Slurm account."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$"), AfterValidator(_not_root)] = (
        Field(description="Also the name of the Slurm account; it stays")
    )
    display_name: Line = ""
    fairshare: int = Field(1, ge=1, le=1_000_000, description="Shares, relative to the other tenants'")


class TenantChange(Change):
    """Fields to change; the others stay."""

    display_name: Line | None = None
    fairshare: int | None = Field(None, ge=1, le=1_000_000, description="Shares, relative to the others'")
    active: bool | None = Field(None, description="false: closed; its people are shut out until it is open")


class KeyView(BaseModel):
    """An API key; never the secret."""

    id: str
    name: str
    scopes: list[Permission] | None = Field(description="null: all that the owner's role may do")
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None = Field(description="To within ten minutes")


class KeyCreate(RequestModel):
    """A new API key of one's own."""

    name: Name = Field(description="What it is for")
    scopes: list[Permission] | None = Field(
        None, max_length=100, description="What it may do; unset: all that its owner's role may do"
    )
    expires_in_days: int | None = Field(None, ge=1, description="Unset: `api.key_days`")


class KeyCreated(KeyView):
    """A new API key."""

    key: str = Field(description="Send it as `Authorization: Bearer brk_…`. It is shown only here")
