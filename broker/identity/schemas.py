"""What the API says about accounts."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints

from broker.identity.permissions import Permission, Role
from broker.text import Line, RequestModel

Username = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._@-]{0,62}$")]
TenantName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
UnixAccount = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
Password = Annotated[str, Field(max_length=1024)]


class LoginRequest(RequestModel):
    """User name and password."""

    username: str = Field(max_length=64)
    password: Password


class TokenView(BaseModel):
    """An access token; send it as `Authorization: Bearer …`."""

    access_token: str
    token_type: str = "bearer"  # noqa: S105 - RFC 6750's word
    expires_in: int = Field(description="Life in seconds")
    must_change_password: bool = Field(
        description="A one-time password: until it is changed only `/auth/password` and `/auth/me` answer"
    )


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
    tenant: TenantName = "default"
    password: Password | None = Field(
        None, description="One-time password; unset: one is made and shown once"
    )


class UserCreated(UserView):
    """A new account, and the password when the broker made it: it is shown only here."""

    one_time_password: str | None


class UserChange(RequestModel):
    """Fields to change; the others stay."""

    display_name: Line | None = None
    role: Role | None = None
    tenant: TenantName | None = None
    active: bool | None = None
    unix_account: UnixAccount | None = Field(None, description='Unix account on the clusters; never "root"')
    password: Password | None = Field(None, description="A new one-time password")
