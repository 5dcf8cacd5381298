"""What the sections of the settings share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.errors import ConfigurationError

SecretFile = Annotated[Path, Field(description="A file with the secret, readable by its owner alone (0600)")]

PriorityClass = Literal["urgent-inference", "inference", "fine-tuning", "training"]
"""How much work hurries (CD-03), the most urgent first."""

RoleName = Literal["admin", "tenant_admin", "internal", "researcher", "viewer"]


class Section(BaseModel):
    """A section: nothing beside its own settings, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
