"""A place to run job scripts in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.job_site import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def folder(site: Site) -> Path:
    place = site.root / "code"
    place.mkdir()
    (place / "train.py").write_text("print('training')\n")
    (place / "odd name\n.txt").write_text("x")
    return place
