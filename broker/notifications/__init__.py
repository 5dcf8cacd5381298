"""Telling people: what happened, to whom it matters, and how it reaches them (DD-16).

`notify` adds one row in the transaction of what happened: the notice stands if and only if that does. The
worker numbers the rows (`outbox.distribute`), makes one delivery per receiver, and sends each until it was
taken or given up (`courier`). Deliveries happen *at least once*: a crash between sending and writing that
down repeats the message, under the same id, by which a receiver knows it again.
"""

from broker.notifications.kinds import Kind
from broker.notifications.service import notify

__all__ = ["Kind", "notify"]
