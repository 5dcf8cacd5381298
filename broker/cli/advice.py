"""Advice in a terminal: what to ask for next time, why, and as a new version of the pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from broker.cli.client import Api
from broker.cli.options import Json, api, examples
from broker.cli.output import emit, harmless, table
from broker.cli.report_words import Language
from broker.errors import BrokerError, Conflict, InvalidRequest

_RESOURCES: Final = ("memory", "time", "gpu_count", "cpus")
_PLAIN: Final = frozenset({"fits", "not_asked"})
"""Rules that say that all is well: shown only on demand."""
_COLUMNS: Final = ("COMPONENT", "RESOURCE", "ASKED", "NEXT TIME", "SBATCH", "SURE", "SAVES>")
SHOWN: Final = 3
"""Pieces of advice in the line below a run."""


def advice(
    ctx: typer.Context,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A run that has ended.")] = None,
    pipeline: Annotated[
        str | None,
        typer.Option("--pipeline", metavar="NAME", help="For its newest version, from its last runs."),
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", min=1, max=100, help="How many of the last runs to tell from.")
    ] = 20,
    apply: Annotated[
        bool, typer.Option("--apply", help="Store it as a new version (with --pipeline).")
    ] = False,
    component: Annotated[
        list[str] | None, typer.Option("--component", "-c", help="Only for this one; repeatable.")
    ] = None,
    resource: Annotated[
        list[str] | None,
        typer.Option("--resource", "-r", help=f"Only this one: {', '.join(_RESOURCES)}; repeatable."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show what fits as well.")] = False,
    lang: Annotated[Language, typer.Option("--lang", help="Language of the reasons.")] = "en",
    as_json: Json = False,
) -> None:
    """Say how much memory, time, GPUs and cores to ask for next time, by what was used (docs: advice)."""
    if (run is None) == (pipeline is None):
        raise InvalidRequest("Name either a run or, with --pipeline, a pipeline")
    if apply and pipeline is None:
        raise InvalidRequest("--apply makes a new version of a pipeline: name it with --pipeline")
    if unknown := sorted(set(resource or ()) - set(_RESOURCES)):
        raise InvalidRequest(f"--resource {unknown[0]}: there are {', '.join(_RESOURCES)}")
    wanted = _Wanted(component, resource)
    with api(ctx) as client:
        path = f"/pipelines/{pipeline}/advice" if pipeline else f"/runs/{run}/advice"
        found = client.get(path, runs=runs)
        wanted.check(found)
        if apply:
            chosen = [_choice(one, finding) for one, finding in _advised(found, wanted)]
            if not chosen:
                raise Conflict(f"Nothing is advised{' of that' * wanted.narrow}: there is nothing to apply")
            body = {"version": found["version"], "choose": chosen, "runs": runs}
            applied = client.post(path, body)
            emit(applied, lambda: _applied(applied), as_json=as_json)
            return
    emit(found, lambda: _shown(found, wanted, lang, everything=everything), as_json=as_json)


def register(root: typer.Typer) -> None:
    """Add the command."""
    lines = (
        "broker advice run-7h2k",
        "broker advice --pipeline text-classifier --runs 50",
        "broker advice --pipeline text-classifier --lang ko",
        "broker advice --pipeline text-classifier --apply -c trainer -r memory",
    )
    root.command(epilog=examples(*lines))(advice)


def line_for(client: Api, run: dict[str, Any]) -> str | None:
    """One line below a run that has ended, if anything is advised by its own jobs.

    Whatever stands in the way of it (an older server, a narrow key), the run is shown without.
    """
    try:
        found = client.get(f"/runs/{run['id']}/advice", runs=1)
    except BrokerError:
        return None
    parts = [
        f"{one['component']} {finding['resource']} {finding['asked']} → {finding['suggested']}"
        for one, finding in _advised(found, _Wanted())
    ]
    more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return f"Next time: {', '.join(parts[:SHOWN])}{more}. Why: broker advice {run['id']}" if parts else None


class _Wanted:
    """Which components and resources are asked about."""

    def __init__(
        self, components: Iterable[str] | None = None, resources: Iterable[str] | None = None
    ) -> None:
        self._components, self._resources = set(components or ()), set(resources or ())

    @property
    def narrow(self) -> bool:
        """Whether not everything is asked about."""
        return bool(self._components or self._resources)

    def check(self, found: dict[str, Any]) -> None:
        """Refuse a component that is not there: nothing would be said of it."""
        known = [one["component"] for one in found["components"]]
        if unknown := sorted(self._components.difference(known)):
            raise InvalidRequest(f"--component {unknown[0]}: there are {', '.join(known)}")

    def __call__(self, component: dict[str, Any], finding: dict[str, Any]) -> bool:
        return (not self._components or component["component"] in self._components) and (
            not self._resources or finding["resource"] in self._resources
        )


def _advised(
    found: dict[str, Any], wanted: _Wanted, part: str = "findings"
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each component's findings that say what to ask for."""
    for one in found["components"]:
        for finding in one[part]:
            if finding["suggested"] is not None and wanted(one, finding):
                yield one, finding


def _choice(one: dict[str, Any], finding: dict[str, Any]) -> dict[str, Any]:
    return {
        "component": one["component"],
        "resource": finding["resource"],
        "suggested": finding["suggested"],
    }


def _shown(found: dict[str, Any], wanted: _Wanted, lang: Language, *, everything: bool) -> RenderableType:
    last = f"the last {found['runs']} run(s) of {found.get('pipeline_id') or found['pipeline']}"
    newest = f", for its version {found['version']}"
    parts: list[RenderableType] = []
    if "run" in found:
        parts += _section(f"By {found['run']}", found, wanted, lang, "findings", everything=everything)
        if found["version"] is not None:
            part = "over_last_runs"
            parts += [Text("")]
            parts += _section(f"By {last}{newest}", found, wanted, lang, part, everything=everything)
    else:
        parts += _section(f"By {last}{newest}", found, wanted, lang, "findings", everything=everything)
    text = "text_ko" if lang == "ko" else "text"
    parts += [Text(harmless(one[text]), style="yellow") for one in found["unread"]]
    return Group(*parts)


def _section(
    title: str, found: dict[str, Any], wanted: _Wanted, lang: Language, part: str, *, everything: bool
) -> list[RenderableType]:
    """A table of what is advised, and below it why; also why nothing is said of the rest."""
    text = "text_ko" if lang == "ko" else "text"
    rows = [
        (
            one["component"],
            finding["resource"],
            finding["asked"],
            Text(harmless(str(finding["suggested"])), style="bold"),
            finding["sbatch"],
            finding["confidence"],
            _saving(finding["saves"]),
        )
        for one, finding in _advised(found, wanted, part)
    ]
    why = [
        Text(harmless(f"{one['component']} {finding['resource']}: {finding[text]}{_overridden(finding)}"))
        for one, finding in _advised(found, wanted, part)
    ]
    quiet = [
        Text(harmless(f"{one['component']} {finding['resource']}: {finding[text]}"), style="bright_black")
        for one in found["components"]
        for finding in one[part]
        if finding["suggested"] is None
        and wanted(one, finding)
        and (everything or finding["rule"] not in _PLAIN)
    ]
    empty = "Nothing to change." if not quiet else "Nothing is advised."
    return [Text(harmless(title), style="bold"), table(_COLUMNS, rows, empty=empty), *why, *quiet]


def _saving(saves: dict[str, Any] | None) -> str:
    """What would have been left to others, never with an exponent."""
    if not saves:
        return ""
    amount = saves["amount"]
    return f"{amount:{',.0f' if amount >= 1000 else '.4g'}} {saves['unit']}"


def _overridden(finding: dict[str, Any]) -> str:
    """A run's own setting wins over the pipeline's: changing that alone changes nothing for such runs."""
    count = finding["overridden"]
    return f" ({count} of the jobs had it from their run's overrides, which win.)" if count else ""


def _applied(applied: dict[str, Any]) -> RenderableType:
    pipeline, version = applied["pipeline"], applied["version"]
    rows = ((one["component"], one["resource"], one["before"], one["after"]) for one in applied["changes"])
    head = f"{pipeline['pipeline_id']} has a new version {version['number']}:"
    return Group(
        Text(harmless(head), style="bold"),
        table(("COMPONENT", "RESOURCE", "BEFORE", "NOW"), rows, empty="Nothing changed"),
    )
