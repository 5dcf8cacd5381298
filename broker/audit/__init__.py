"""The audit trail: who changed what, from where, with the values before and after (AU-04)."""

from broker.audit.service import Actor, record, source_ip

__all__ = ["Actor", "record", "source_ip"]
