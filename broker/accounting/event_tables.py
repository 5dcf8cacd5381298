"""What accounting is asked for beside jobs: what happened to nodes, what the cluster had, fair shares."""

from __future__ import annotations

from datetime import date
from typing import Any

from sqlalchemy import BigInteger, Date, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, JsonType


class AccountingEventRow(Base):
    """One event of slurmdbd, or a reservation; never deleted, for Slurm purges its own (`PurgeEventAfter`).

    Times in seconds since the epoch. `name`: the node; "" for what the whole cluster had, or lacked;
    `reservation N`. `end_at` null: it goes on, and is known to up to `seen_at`. `lack`: `slurm.events.Lack`;
    `state`: Slurm's word, or a reservation's name. `parts`: [node, cores, {GPU type: GPUs}] of each node.
    `unused`: of a reservation that is for no maintenance, the share of its time up to `seen_at` in which its
    nodes had no job (UnusedWall), else 1.
    """

    __tablename__ = "accounting_events"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    start_at: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    end_at: Mapped[int | None] = mapped_column(BigInteger)
    seen_at: Mapped[int] = mapped_column(BigInteger)
    lack: Mapped[str] = mapped_column(String(10))
    state: Mapped[str]
    who: Mapped[str]
    reason: Mapped[str]
    parts: Mapped[list[list[Any]]] = mapped_column(JsonType)
    unused: Mapped[float]

    __table_args__ = (Index("ix_accounting_events_cluster_end_at", "cluster", "end_at"),)


class AccountingShareRow(Base):
    """An association's fair share as it was at the last look of a day (UTC), at `taken_at` (epoch seconds).

    `unix_user` "": the account's own. `tenant`, `user` as in `accounting_jobs`; `user` "" of an account.
    `raw_usage` decays: a priority, no bill. Null is what sshare(1) leaves empty; `level_fs` of who has shares
    and used nothing is infinite.
    """

    __tablename__ = "accounting_shares"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    account: Mapped[str] = mapped_column(String(64), primary_key=True)
    unix_user: Mapped[str] = mapped_column(String(64), primary_key=True)
    partition: Mapped[str] = mapped_column(String(255), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    user: Mapped[str] = mapped_column(String(160))
    raw_shares: Mapped[str] = mapped_column(String(32))
    norm_shares: Mapped[float | None]
    raw_usage: Mapped[int] = mapped_column(BigInteger)
    effective_usage: Mapped[float | None]
    fair_share: Mapped[float | None]
    level_fs: Mapped[float | None]
    taken_at: Mapped[int] = mapped_column(BigInteger)


class AccountingLookRow(Base):
    """How far one thing (`what`: `events`, `shares`) of a cluster was read: from `since` to `read_to` (epoch
    seconds) without a hole. `trouble`: what the last look failed of.
    """

    __tablename__ = "accounting_looks"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    what: Mapped[str] = mapped_column(String(10), primary_key=True)
    since: Mapped[int] = mapped_column(BigInteger)
    read_to: Mapped[int] = mapped_column(BigInteger)
    trouble: Mapped[str | None]
