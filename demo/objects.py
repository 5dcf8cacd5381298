"""Read back every object that runs stored in S3, check it, list the outputs: `objects.py RUN…`.

Exit status 1 if one is not what its manifest says.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

BROKER = Path(sys.executable).with_name("broker")


def stored(run: str) -> list[dict[str, Any]]:
    """The files in the manifests of a run, with a presigned URL each."""
    command = [BROKER, "run", "outputs", run, "--json"]
    files: list[dict[str, Any]] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    )
    return files


def read_back(http: httpx.Client, file: dict[str, Any]) -> tuple[int, str]:
    """Size and SHA-256 of what S3 gives for a file now."""
    size, digest = 0, hashlib.sha256()
    with http.stream("GET", file["url"]) as response:
        response.raise_for_status()
        for chunk in response.iter_bytes():
            size += len(chunk)
            digest.update(chunk)
    return size, digest.hexdigest()


def main(runs: list[str]) -> int:
    """Check everything, show outputs and whatever is wrong; the number of objects that are."""
    table = Table("object in S3", "bytes", "SHA-256 of what S3 returned", box=None, header_style="bold")
    table.columns[1].justify = "right"
    wrong = count = total = 0
    with httpx.Client(timeout=60) as http:
        for run in runs:
            for file in stored(run):
                size, sha256 = read_back(http, file)
                good = (size, sha256) == (file["size"], file["sha256"])
                wrong, count, total = wrong + (not good), count + 1, total + size
                if file["path"].startswith("outputs/") or not good:
                    verdict = "[green]✓[/green]" if good else f"[red]✗ not {file['sha256']}[/red]"
                    name = "/".join((run, file["component"], file["path"]))
                    table.add_row(name, f"{size:,}", f"{sha256} {verdict}")
    console = Console(width=180)
    console.print(table)
    console.print(
        f"{count} objects (with the logs), {total:,} bytes read back; "
        f"{wrong or 'none'} differ from their manifests"
    )
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
