"""`broker doctor`: the findings, for a person or a program."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from broker.checks import Check
from broker.cli.output import harmless, message, print_json, state_style, stderr, stdout
from broker.doctor import Report, examine
from broker.settings import Settings

CHECK_FAILED = 1
"""Exit code when something must be mended."""
_MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}


def diagnose(settings: Settings, cluster: str | None, *, with_jobs: bool, as_json: bool) -> int:
    """Examine everything and tell; the exit status."""
    reports: list[Report] = []
    with stderr().status("examining…", spinner="dots"):
        for report in examine(settings, cluster, with_jobs=with_jobs):
            reports.append(report)
            if not as_json:
                stdout().print(shown(report))
    failed = any(report.failed for report in reports)
    if as_json:
        print_json(
            {
                "ok": not failed,
                "reports": [
                    {"subject": report.subject, "checks": [asdict(check) for check in report.checks]}
                    for report in reports
                ],
            }
        )
    else:
        counts = Counter(check.status for report in reports for check in report.checks)
        message(f"{counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failed")
    return CHECK_FAILED if failed else 0


def shown(report: Report) -> RenderableType:
    """One report: a line for each finding, and how to mend what is not well."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=1)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for check in report.checks:
        grid.add_row(
            Text(_MARKS[check.status], style=state_style(check.status)), Text(check.name), _finding(check)
        )
    return Group(Text(report.subject, style="bold"), Padding(grid, (0, 0, 0, 2), expand=False), Text(""))


def _finding(check: Check) -> Text:
    text = Text(harmless(check.detail))
    if check.status != "ok" and check.remedy:
        text.append(f"\n→ {harmless(check.remedy)}", style=state_style(check.status))
    return text
