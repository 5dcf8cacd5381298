"""Print a broker's settings for a development cluster: `settings.py CLUSTER.JSON STATE_FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

LIMITS = ("api_calls_per_day", "gpu_hours_per_month", "active_runs_per_user", "runs_per_hour", "runs_per_day")


def toml(cluster: Path, state: Path) -> str:
    """The settings of a broker whose only cluster is the one that `cluster` (its `cluster.json`) describes.

    JSON's strings are TOML's basic strings, so `json.dumps` quotes them.
    """
    info = json.loads(cluster.read_text(encoding="utf-8"))
    ssh = info["ssh"]
    values = {
        "ssh_host": ssh["host"],
        "ssh_port": ssh["port"],
        "ssh_user": ssh["user"],
        "ssh_key_file": ssh["key"],
        "ssh_known_hosts": ssh["known_hosts"],
        "base_path": f"{info['shared']}/ml-jobs",
        "image_dir": f"{info['shared']}/images",
        "poll_interval_s": 2,
        "insecure_registries": [info["registry"]],
    }
    lines = [
        f"data_dir = {json.dumps(str(state / 'data'))}",
        'log_format = "console"',
        "",
        "[api]",
        "port = 0",
        "",
        "[quotas]  # it is shown again and again on one day, by one person",
        *(f"{name} = 1000000" for name in LIMITS),
    ]
    lines += [
        "",
        f"[clusters.{info['name']}]",
        *(f"{key} = {json.dumps(value)}" for key, value in values.items()),
    ]
    # The example's registry does not exist; its images come from the cluster's own.
    lines += [f'registry_mirrors = {{ "registry.avatar.io" = {json.dumps(info["registry"])} }}']
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(toml(Path(sys.argv[1]), Path(sys.argv[2])))
