"""The settings of this machine, and errors in them as the broker's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from broker.settings import Settings


def load_settings() -> Settings:
    """Environment, then `broker.toml`; raises `ConfigurationError` with everything wrong in them.

    What such a command does is done in this process: its warnings go to stderr, stdout is its answer's alone.
    A server says afterwards what else it wants logged.
    """
    import tomllib

    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from broker.logging import configure_logging
    from broker.settings import Settings

    configure_logging("console", "warning")
    try:
        return Settings()
    except ValidationError as error:
        problems = [
            Problem("/".join(("", *map(str, one["loc"]))), "bad_setting", one["msg"])
            for one in error.errors(include_url=False, include_input=False)
        ]
        raise ConfigurationError(
            "The settings can't be used; docs/settings.md describes each", problems=problems
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"The settings file is not TOML: {error}") from None
    except SettingsError as error:
        raise ConfigurationError(f"The settings can't be read: {error}") from None
