"""Acting as a person: which command lines are made, and how sudo's own refusals are told from a command's.

The host below gives recorded answers (sudo 1.9.16); a real sudo is met in tests/cluster/test_run_as.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from broker.errors import Denied, InvalidRequest, Unreachable
from broker.hosts import Completed, PersonHost
from broker.hosts.base import Stdin, program
from broker.hosts.files import HostFiles
from broker.hosts.person import acting_argv

OK = Completed(0, b"", b"")
KIM = Completed(0, b"2000\n2001\n", b"")


class Recorded(HostFiles):
    """Answers one after the other; what was asked is kept."""

    name = "login1"

    def __init__(self, *answers: Completed) -> None:
        self.answers, self.asked = list(answers), list[list[str]]()

    def run(
        self, argv: Sequence[str], *, stdin: Stdin = b"", timeout: float, readonly: bool = False
    ) -> Completed:
        self.asked.append(list(argv))
        return self.answers.pop(0)

    def stream(self, argv: Sequence[str], *, stdin: Stdin = b"", timeout: float) -> Iterator[bytes]:
        self.asked.append(list(argv))
        yield self.answers.pop(0).stdout

    def close(self) -> None:
        raise AssertionError("the connection is not a person's to close")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "root",
            "#0",
            "#-1",
            "#2001",
            "%people",
            "-u",
            "--",
            "",
            "kim ",
            " kim",
            "kim\n",
            "kim;id",
            "$(id)",
        ),
        *(
            "kim park",
            "Kim",
            "ALL",
            "kim/..",
            "../kim",
            "김",
            "k" * 33,
            "1kim",
            "kim\0",
            "`id`",
            "kim&",
            "-kim",
        ),
    ],
)
def test_nothing_but_an_accounts_name_gets_into_a_command_line(name: str) -> None:
    with pytest.raises(InvalidRequest, match="no person's Unix account"):
        acting_argv(name, ["id"])
    with pytest.raises(InvalidRequest):
        PersonHost(Recorded(), name)


def test_a_command_is_run_by_sudo_without_a_shell_between() -> None:
    argv = acting_argv("kim", ["printf", "%s", "$(id); -u root"])
    assert argv[argv.index("--") :] == ["--", "env", "-C", "/", "printf", "%s", "$(id); -u root"]
    assert argv[: argv.index("--")] == ["env", "LC_ALL=C", "sudo", "-n", "-H", "-u", "kim"]
    assert program(acting_argv("kim", ["env", "LC_ALL=C", "dd", "if=/x"])) == "dd"
    assert program(["env", "LC_ALL=C", "sudo", "-n", "-l"]) == "sudo", "what the doctor asks, for nobody"
    assert program(["env", "-u", "SQUEUE_USERS", "-C", "/", "TZ=UTC", "scontrol", "-u"]) == "scontrol"


def test_an_account_is_looked_up_once_before_the_first_command() -> None:
    host = Recorded(KIM, OK, OK)
    person = PersonHost(host, "kim")
    person.run(["true"], timeout=1)
    person.run(["true"], timeout=1)
    assert len(host.asked) == 3
    assert host.asked[0][-1] == "kim"
    assert host.asked[1] == acting_argv("kim", ["true"])
    person.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Completed(0, b"2000\n2000\n", b""), "service account"),
        (Completed(0, b"2000\n0\n", b""), "system account"),
        (Completed(0, b"Welcome!\n2000\n999\n", b""), "system account"),
        (Completed(1, b"2000\n", "id: ‘kim’: no such user\n".encode()), "no Unix account 'kim'"),
    ],
)
def test_what_is_no_persons_account_runs_nothing(answer: Completed, why: str) -> None:
    host = Recorded(answer, answer, answer)
    person = PersonHost(host, "kim")
    with pytest.raises(Denied, match=why):
        person.run(["true"], timeout=1)
    with pytest.raises(Denied, match=why):
        list(person.read("/x"))
    with pytest.raises(Denied, match=why):  # nothing was remembered of it
        person.stat("/x")


def test_an_account_that_could_not_be_looked_up_is_asked_for_again() -> None:
    host = Recorded(Completed(255, b"", b"sh: cannot fork"), KIM, OK)
    person = PersonHost(host, "kim")
    with pytest.raises(Unreachable):
        person.run(["true"], timeout=1)
    assert person.run(["true"], timeout=1) == OK


@pytest.mark.parametrize(
    "said",
    [
        "sudo: a password is required",
        "sudo: unknown user kim\nsudo: error initializing audit plugin sudoers_audit",
        "Sorry, user broker is not allowed to execute '/usr/bin/env -C / true' as kim on login1.",
        "sudo: unable to resolve host login1: Name or service not known\nsudo: a password is required",
        "sudo: /etc/sudo.conf: No such file or directory",
    ],
)
def test_what_sudo_refuses_is_denied_and_never_taken_for_a_missing_file(said: str) -> None:
    person = PersonHost(Recorded(KIM, Completed(1, b"", said.encode())), "kim")
    with pytest.raises(Denied, match="can't act as kim") as refused:
        person.stat("/x")
    assert "docs/operations.md" in refused.value.detail


def test_a_login_node_without_sudo_is_named() -> None:
    without = Completed(127, b"", "env: ‘sudo’: No such file or directory\n".encode())
    with pytest.raises(Denied, match="sudo"):
        PersonHost(Recorded(KIM, without), "kim").stat("/x")


def test_a_warning_of_sudo_before_a_commands_own_answer_is_no_refusal() -> None:
    said = b"sudo: unable to resolve host login1: Temporary failure\nfind: '/x': No such file or directory\n"
    assert PersonHost(Recorded(KIM, Completed(1, b"", said)), "kim").stat("/x") is None
