"""`python -m broker.cli.docs` writes `docs/cli.md` from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from typer.main import get_command

from broker.cli.app import app
from broker.errors import all_errors

FILE: Final = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
_INTRODUCTION: Final = """\
# The `broker` command

Written by `python -m broker.cli.docs` from the commands' own help; change it there.

One program, three uses: a client of a broker's API, tools for specs in files that need no server, and the
server itself.

```console
$ broker login --server https://broker.example.org
$ broker pipeline validate pipeline.json
$ broker run submit pipeline.json --follow
$ broker run outputs run-1m7yk7h67jtj8nfp --download results/
$ broker models list
```

**For people and for programs.** Answers go to standard output: tables, or with `--json` one JSON document
(the API's own; streams print one a line). Progress, messages and errors go to standard error; with `--json`
an error is a problem document (RFC 9457) there. `--help` after any command shows its options and examples.

**Which server.** `--server URL` before the command, else `BROKER_SERVER`, else the server of the last login,
else `http://127.0.0.1:8080`. **Which token.** `BROKER_TOKEN`, else the one that `broker login` keeps in
`~/.config/broker/credentials.json` (0600; below `XDG_CONFIG_HOME` if that is set).

**Repeating is safe.** Commands that ask for a run send a new `Idempotency-Key` and repeat the request when
the answer was lost; give `--idempotency-key KEY` yourself to make a whole script repeatable. Waiting survives
a restart of the broker. Downloads are checked by SHA-256, go on where they broke off, and skip what is there.

"""
_STATUS_ROWS: Final = (
    ("0", "Done; a waited-for run succeeded."),
    (
        "1",
        "A waited-for run failed, was cancelled or rejected; a waited-for export could not be written; "
        "a check of `broker doctor` failed; the audit trail is broken.",
    ),
    ("130", "Interrupted (Ctrl-C). What was asked for goes on."),
)


def document() -> str:
    """The whole page."""
    return _INTRODUCTION + "\n".join([*_exit_codes(), *_index(), *_commands()])


def commands() -> list[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    return list(_walk(("broker",), get_command(app)))


def _walk(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        for name, sub in command.commands.items():
            yield from _walk((*words, name), sub)
    else:
        yield words, command


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes"
    yield ""
    yield "| code | meaning |"
    yield "|---|---|"
    meanings: dict[int, list[str]] = {}
    for cls in all_errors():
        titles = meanings.setdefault(cls.exit_code, [])
        if cls.title not in titles:
            titles.append(cls.title)
    rows = [*_STATUS_ROWS, *((str(code), "; ".join(titles)) for code, titles in meanings.items())]
    for code, meaning in sorted(rows, key=lambda row: int(row[0])):
        yield f"| {code} | {meaning} |"
    yield ""


def _index() -> Iterator[str]:
    yield "## Commands"
    yield ""
    yield "| command | what it does |"
    yield "|---|---|"
    for words, command in commands():
        name = " ".join(words)
        yield f"| [`{name}`](#{name.replace(' ', '-')}) | {_first_sentence(command.help)} |"
    yield ""


def _commands() -> Iterator[str]:
    for words, command in commands():
        yield from _command(" ".join(words), command)


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    words = [one.metavar or one.name.upper() for one in arguments]
    shown = (word if one.required else f"[{word}]" for word, one in zip(words, arguments, strict=True))
    usage = " ".join([name, *shown, "[OPTIONS]"])
    yield f"### {name}"
    yield ""
    yield f"    {usage}"
    yield ""
    yield _paragraphs(command.help)
    yield ""
    if arguments or options:
        yield "| option | what it is |"
        yield "|---|---|"
        for word, one in zip(words, arguments, strict=True):
            yield f"| `{word}` | {_cell(one.help)} |"
        for one in options:
            yield f"| {_names(one)} | {_cell(one.help)}{_default(one)} |"
        yield ""
    yield "```console"
    for line in (command.epilog or "").split("\n\n")[1:]:
        yield f"$ {line.strip()}"
    yield "```"
    yield ""


def _names(option: Any) -> str:
    kind = option.type_descriptor.annotation
    choices = "|".join(get_args(kind)) if get_origin(kind) is Literal else option.name.upper()
    value = "" if option.is_flag else f" {option.metavar or choices}".replace("|", "\\|")
    return ", ".join(f"`{name}{value}`" for name in (*option.opts, *option.secondary_opts))


def _default(option: Any) -> str:
    shown = option.default if not callable(option.default) and not option.is_flag else None
    return f" Default: `{shown}`." if shown not in (None, (), [], "") else ""


def _first_sentence(text: str) -> str:
    first = _paragraphs(text).split("\n\n")[0]
    end = first.find(". ")
    return _cell(first if end < 0 else first[: end + 1])


def _paragraphs(text: str) -> str:
    parts = (" ".join(part.split()) for part in text.strip().split("\n\n"))
    return "\n\n".join(parts)


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
