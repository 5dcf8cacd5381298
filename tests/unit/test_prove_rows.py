"""A row of the proof holds only when the tests behind it ran, passed and told their figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from prove.rows import Measured, told


@pytest.mark.parametrize(
    ("body", "measured"),
    [
        ("print('7 figures told')", Measured("7 figures told: 0 leaks")),
        ("print('7 figures told'); assert False", None),
        ("pytest.skip('no cluster')", Measured("the tests were skipped", holds=False)),
    ],
    ids=["passed", "failed", "skipped"],
)
def test_tests_that_failed_or_were_skipped_prove_nothing(
    body: str, measured: Measured | None, tmp_path: Path
) -> None:
    file = tmp_path / "test_something.py"
    file.write_text(f"import pytest\n\ndef test_it():\n    {body}\n")
    found = told("figures told", str(file), passed=": 0 leaks")
    assert found == (measured or Measured(f"a test failed: {file}", holds=False))
