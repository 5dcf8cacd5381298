"""Reading what the submission script answers."""

from __future__ import annotations

import pytest

from broker.errors import ImageUnavailable, Unreachable
from broker.runs.answers import is_transient, parse_submission, refusal
from broker.runs.images import image_source, parse_pull
from broker.runs.logs import whole_characters
from broker.runs.submission import back_off
from broker.settings import ClusterSettings

ABC = ("a", "b", "complete", "refused", "unknown")


def test_a_submission_is_complete_only_when_the_script_says_so_and_the_count_agrees() -> None:
    assert parse_submission("a 1\nb 2\ncomplete 2\n", "", ABC).complete
    assert not parse_submission("a 1\nb 2\n", "", ABC).complete
    assert not parse_submission("a 1\ncomplete 2\n", "", ABC).complete


def test_a_login_banner_is_not_taken_for_an_answer() -> None:
    answer = parse_submission("Welcome to the cluster!\nterminals 12\na 1\ncomplete 1\n", "", ABC)
    assert answer.complete
    assert answer.ids == {"a": 1}


def test_a_refusal_carries_slurms_own_words() -> None:
    answer = parse_submission("a 1\nrefused b 1\n", "sbatch: error: Invalid account\n", ABC)
    assert answer.refused == "b"
    assert "Invalid account" in answer.complaint
    assert not is_transient(answer.complaint)


def test_a_refusal_of_an_account_or_qos_says_what_mends_it() -> None:
    failed = "sbatch: error: Batch job submission failed: "
    assert "broker cluster sync" in refusal("a", f"{failed}Invalid qos specification")
    account = refusal("a", f"{failed}Invalid account or account/partition combination specified")
    assert "broker cluster sync" in account
    assert refusal("a", "no such feature") == "Slurm refused component 'a': no such feature"


@pytest.mark.parametrize("number", ["²", "9" * 5000, "99999999999", "-1"])
def test_what_is_no_job_id_is_none(number: str) -> None:
    answer = parse_submission(f"a {number}\ncomplete {number}\n", "", ABC)
    assert (answer.ids, answer.complete) == ({}, False)


def test_components_may_be_called_what_the_script_calls_its_verdicts() -> None:
    answer = parse_submission("complete 1\nrefused 2\nunknown 3\ncomplete 3\n", "", ABC)
    assert answer.ids == {"complete": 1, "refused": 2, "unknown": 3}
    assert answer.complete
    assert answer.refused is None
    assert not parse_submission("refused 1\ncomplete 2\n", "", ABC).complete  # killed before its verdict


def test_a_script_that_is_not_sure_is_neither_complete_nor_refused() -> None:
    answer = parse_submission("a 1\nunknown b\n", "sbatch: error: Socket timed out\n", ABC)
    assert not answer.complete
    assert answer.refused is None


def test_a_folder_that_is_somebody_elses_is_told_from_silence() -> None:
    assert parse_submission("foreign\n", "", ABC).foreign
    assert not parse_submission("foreign 1\n", "", ABC).foreign
    assert not parse_submission("foreign\ncomplete 0\n", "", ABC).foreign


def test_a_controller_that_is_away_is_a_matter_of_time() -> None:
    assert is_transient("sbatch: error: Batch job submission failed: Unable to contact slurm controller")


def test_waiting_grows_and_is_bounded() -> None:
    waits = [back_off(tries).total_seconds() for tries in range(12)]
    assert waits == sorted(waits)
    assert waits[-1] <= 64


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("python:3.12", ("https", "registry-1.docker.io", "library/python", "3.12")),
        ("nvcr.io/nvidia/pytorch:25.01", ("https", "nvcr.io", "nvidia/pytorch", "25.01")),
        ("registry.avatar.io/data-loader:1.0", ("http", "127.0.0.1:5000", "data-loader", "1.0")),
        ("localhost:5000/x:1", ("https", "localhost:5000", "x", "1")),
    ],
)
def test_a_name_is_found_where_docker_would_look_after_mirrors(name: str, expected: tuple[str, ...]) -> None:
    cluster = ClusterSettings(
        registry_mirrors={"registry.avatar.io": "127.0.0.1:5000"}, insecure_registries=("127.0.0.1:5000",)
    )
    source = image_source(name, cluster)
    assert (source.scheme, source.registry, source.repository, source.tag) == expected


def test_an_image_that_does_not_exist_and_a_registry_that_is_away_are_told_apart() -> None:
    with pytest.raises(ImageUnavailable, match="no-such"):
        parse_pull(["r/no-such:1"], "missing the registry answered: HTTP/1.1 404 Not Found\n")
    with pytest.raises(Unreachable):
        parse_pull(["r/x:1"], "unreachable curl: (7) Failed to connect\n")


def test_a_pull_script_that_was_cut_off_is_not_taken_for_an_answer() -> None:
    with pytest.raises(Unreachable):
        parse_pull(["r/a:1", "r/b:1"], f"ok sha256:{'0' * 64} 12 /i/a.sif\n")


def test_a_log_is_cut_between_characters() -> None:
    text = "손실 0.25 ✓".encode()
    for length in range(len(text) + 1):
        kept = whole_characters(text[:length])
        kept.decode()
        assert length - len(kept) < 4


def test_garbage_in_a_log_is_not_held_back() -> None:
    assert whole_characters(b"abc\xff") == b"abc\xff" or whole_characters(b"abc\xff\xff\xff\xff") != b""


def test_a_login_banner_is_not_taken_for_an_image() -> None:
    answer = f"Welcome! Last\nok go\nok sha256:{'0' * 64} 12 /i/a.sif\n"
    assert parse_pull(["r/a:1"], answer)["r/a:1"][0].sif == "/i/a.sif"


def test_a_complaint_that_a_stranger_wrote_is_one_bounded_line() -> None:
    said = parse_submission("refused a 1\n", f"remote: \0\x1b[2J\n{'x' * 2**20}\n", ABC).complaint
    assert said.startswith("remote: ")
    assert said.isprintable()
    assert len(said) < 2100


def test_the_script_asks_accounting_for_states_that_it_accounts_for() -> None:
    """24.11 refuses others: `sacct: fatal: job state CF is not supported / accounted`."""
    from broker.compiler import submission
    from broker.slurm.queue import ALL_STATES

    assert submission._ALL_STATES == ALL_STATES
