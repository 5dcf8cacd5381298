"""Single sign-on: which account somebody at a provider has here, and sign-ons under way."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, UTCDateTime


class IdentityRow(Base):
    """One person of one provider and the account here. Names and addresses may change hands; `sub` never."""

    __tablename__ = "user_identities"

    issuer: Mapped[str] = mapped_column(String(255), primary_key=True)
    subject: Mapped[str] = mapped_column(String(255), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    linked_at: Mapped[datetime] = mapped_column(UTCDateTime)
    signed_on_at: Mapped[datetime] = mapped_column(UTCDateTime)


class SignOnRow(Base):
    """A sign-on that came back from the provider: that its state was used, and who may have tokens for it.

    Made only for a state of ours in the browser that began; kept for minutes. What only its browser may know
    is here as a hash.
    """

    __tablename__ = "sign_ons"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    challenge: Mapped[str] = mapped_column(String(64))
    code_hash: Mapped[str | None] = mapped_column(String(64), unique=True)
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id"))
    redeem_by: Mapped[datetime | None] = mapped_column(UTCDateTime)
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
