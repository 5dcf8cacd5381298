"""What `broker doctor` says about the ways to tell people. It sends nothing."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

from broker.checks import Check
from broker.errors import BrokerError
from broker.notifications.channels import service_of
from broker.settings import NotificationSettings


def check_notifications(settings: NotificationSettings) -> Iterator[Check]:
    """Can each configured way be used? Nothing is said about what is not configured."""
    if settings.email_url_file is not None:
        yield _service("mail server", settings.email_url_file, to="nobody@example.org")
    for name, room in settings.chat.items():
        yield _service(f"chat {name}", room.url_file, to=None)
    if settings.ca_file is not None:
        yield _certificates(settings.ca_file)
    if settings.allowed_networks:
        listed = ", ".join(settings.allowed_networks)
        yield Check("allowed networks", "ok", f"webhooks may reach {listed}, though private")


def _service(name: str, url_file: Path, to: str | None) -> Check:
    try:
        service = service_of(url_file, "doctor", to)
    except BrokerError as error:
        return Check(name, "fail", error.detail, "Mend the file, or the setting that names it")
    return Check(name, "ok", f"{service.service_name}, as {url_file} says (nothing was sent)")


def _certificates(path: Path) -> Check:
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error)
        return Check("certificates", "fail", f"{path}: {reason}", "Name a PEM file: `notifications.ca_file`")
    return Check("certificates", "ok", f"webhooks' servers are checked with {path}")
