"""Swift's configuration files, as text. Pure.

Paths are relative to the server's directory, where it runs: PasteDeploy reads `%` in one section and not in
another, so a directory of that name could not be written down.

Option names and defaults: the sample files `etc/*-server.conf-sample` of Swift 2.38.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

Backend = Literal["account", "container", "object"]
BACKENDS: tuple[Backend, ...] = ("account", "container", "object")
REGION = "us-east-1"
MAX_PARTS = 10_000  # of one multipart upload, as S3 has it
_MIB = 1 << 20

# Every server waits for the others in one event loop: Swift's time-outs for a network (0.5 s to connect)
# would take a busy moment for a dead node. And the only node is never to be taken out of service.
_PATIENCE = {"conn_timeout": 10, "node_timeout": 60, "log_level": "WARNING"}


def swift_conf(salt: str) -> str:
    """`swift.conf`: the salt of path hashes and the one storage policy."""
    return _ini(
        {
            "swift-hash": {"swift_hash_path_suffix": salt},
            "storage-policy:0": {"name": "local", "default": "yes"},
        }
    )


def backend_conf(kind: Backend) -> str:
    """`{kind}-server.conf` of one of the three storage servers."""
    return _ini(
        {
            "DEFAULT": {
                "swift_dir": "conf",
                "devices": "data",
                "mount_check": "false",
                "disable_fallocate": "true",
                "fallocate_reserve": 0,
                **_PATIENCE,
            },
            "pipeline:main": {"pipeline": f"{kind}-server"},
            f"app:{kind}-server": {
                "use": f"egg:swift#{kind}",
                "disk_chunk_size": _MIB,
                "network_chunk_size": _MIB,
                "container_update_timeout": 30,
            },
        }
    )


def proxy_conf(cors_origins: Sequence[str]) -> str:
    """`proxy-server.conf`: S3 in front, authentication by access key, multipart by Swift's large objects."""
    origins = ",".join(cors_origins)
    filters: dict[str, Mapping[str, object]] = {
        "catch_errors": {},
        "gatekeeper": {},
        "listing_formats": {},
        "s3api": {
            "location": REGION,
            "max_upload_part_num": MAX_PARTS,
            "cors_preflight_allow_origin": origins,
        },
        "copy": {},
        "slo": {
            "allow_async_delete": "false",
            "max_manifest_segments": MAX_PARTS,
            "max_manifest_size": 16 * _MIB,
        },
    }
    own = "broker.objects.server.filters"
    return _ini(
        {
            "DEFAULT": {"swift_dir": "conf", "log_level": "WARNING"},
            "pipeline:main": {
                "pipeline": "catch_errors gatekeeper cache listing_formats s3api keys copy slo proxy-server"
            },
            "app:proxy-server": {
                "use": "egg:swift#proxy",
                "account_autocreate": "true",
                "client_chunk_size": _MIB,
                "object_chunk_size": _MIB,
                "error_suppression_interval": 1,
                "cors_allow_origin": origins,
                **_PATIENCE,
            },
            "filter:cache": {"paste.filter_factory": f"{own}:cache_factory"},
            "filter:keys": {"paste.filter_factory": f"{own}:keys_factory", "keys": "keys.json"},
            **{f"filter:{name}": {"use": f"egg:swift#{name}", **more} for name, more in filters.items()},
        }
    )


def _ini(sections: Mapping[str, Mapping[str, object]]) -> str:
    """An INI file for PasteDeploy, which takes `%` for interpolation (but for the section DEFAULT)."""
    lines: list[str] = []
    for section, options in sections.items():
        lines += [f"[{section}]", *(f"{name} = {_escaped(value)}" for name, value in options.items()), ""]
    return "\n".join(lines)


def _escaped(value: object) -> str:
    text = str(value)
    if any(c in text for c in "\r\n"):
        raise ValueError(f"a line break in {text!r} can't stand in a configuration file")
    return text.replace("%", "%%")
