"""What the submission script answers (`templates/submit.sh.j2`), read without I/O."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass, field

from broker.hosts.base import as_one_line

TRANSIENT_REFUSALS = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "temporarily unable to accept job",
    "Resource temporarily unavailable",
    "Connection refused",
    "Zero Bytes were transmitted",
    "Slurm backup controller in standby mode",
    "Slurm controller is in standby mode",
    "Transport endpoint is not connected",
    "Unspecified error",
)
"""What sbatch says when the time, not the job, is wrong (slurm/slurm_errno.c)."""


_SYNC = "An admin brings Slurm into line with the tenants and priority classes: `broker cluster sync`"
_REMEDIES = {
    "Invalid qos": f"{_SYNC}; or sets `priority_classes = false` where there are none",
    "Invalid account": _SYNC,
}
"""What mends a refusal that is no fault of the spec (sbatch's words from 22.05 to 26.05)."""


_NUMBER = re.compile(r"[0-9]{1,10}")
"""What Slurm counts in 32 bits; the script may be a person's own, and say anything."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What the submission script answered. `ids`: Slurm job id by component; `complete`: it has them all."""

    ids: dict[str, int] = field(default_factory=dict)
    complete: bool = False
    refused: str | None = None
    fenced: bool = False
    foreign: bool = False
    complaint: str = ""


def parse_submission(stdout: str, stderr: str, components: Container[str]) -> Submitted:
    """Read the script's answer: `component id` lines, then one that says how it ended (`submit.sh.j2`).

    Only the last line is a verdict: components may be called `complete` or `refused`.
    """
    ids: dict[str, int] = {}
    *jobs, verdict = stdout.splitlines() or [""]
    for line in jobs:
        match line.split():
            case [component, number] if _NUMBER.fullmatch(number) and component in components:
                ids[component] = int(number)
            case _:
                pass  # a login banner, a module's greeting: not ours
    refused, complete, fenced, foreign = None, False, False, False
    match verdict.split():
        case ["complete", count] if _NUMBER.fullmatch(count):
            complete = int(count) == len(ids)
        case ["refused", component, *_]:
            refused = component
        case ["fenced"]:
            fenced = True
        case ["foreign"]:
            foreign = True
        case _:
            pass
    return Submitted(ids, complete, refused, fenced, foreign, as_one_line(stderr))


def refusal(component: str, complaint: str) -> str:
    """Slurm's refusal of a component as a sentence, with the remedy where it is known."""
    remedy = next((f". {remedy}" for words, remedy in _REMEDIES.items() if words in complaint), "")
    return f"Slurm refused component {component!r}: {complaint}{remedy}"


def is_transient(complaint: str) -> bool:
    """Whether the same submission may succeed later."""
    return any(text in complaint for text in TRANSIENT_REFUSALS)
