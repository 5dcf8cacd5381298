"""The command tree: every command explains itself, and the page about them is true."""

from __future__ import annotations

import re

import pytest

from broker.cli import docs, main
from broker.errors import all_errors

COMMANDS = {" ".join(words): command for words, command in docs.commands()}
SERVERS = {"broker up", "broker serve", "broker worker"}
PAGE = docs.FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_stands_on_the_page(name: str) -> None:
    assert f"### {name}\n" in PAGE


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_an_example_of_itself(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert f"  {name}" in command.epilog


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_works_as_it_is_printed(name: str) -> None:
    """What explains it is a comment to the shell as well, not an argument too many."""
    examples = [line.strip() for line in COMMANDS[name].epilog.splitlines() if "  broker" in line]
    assert not [line for line in examples if re.search(r"\S {3,}[^\s#]", line)]


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - SERVERS))
def test_every_command_that_answers_has_json(name: str) -> None:
    assert "--json" in {option for parameter in COMMANDS[name].params for option in parameter.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_described(name: str) -> None:
    for parameter in COMMANDS[name].params:
        assert parameter.help or getattr(parameter, "hidden", False), f"{name}: {parameter.name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_shown_and_is_no_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split()[1:], "--help"]) == 0
    assert "Usage: " in capsys.readouterr().out


def test_the_page_is_what_the_commands_say() -> None:
    assert docs.document() == PAGE, "run `python -m broker.cli.docs`"


def test_the_page_says_what_can_be_left_out() -> None:
    for usage in ("broker report [NAME] [OPTIONS]", "broker exports list [NAME] [OPTIONS]"):
        assert f"\n    {usage}\n" in PAGE
    assert "\n    broker exports ask NAME [OPTIONS]\n" in PAGE


def test_every_exit_code_stands_on_the_page() -> None:
    for error in all_errors():
        assert f"\n| {error.exit_code} |" in PAGE


def test_an_unknown_option_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "list", "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("broker ")
