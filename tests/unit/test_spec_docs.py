"""The page on specs names everything there is."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from broker.compiler import SETUP_FAILED
from broker.spec.models import (
    Component,
    GitCode,
    Image,
    PathCode,
    PipelineSpec,
    Resources,
    SifImage,
    Storage,
    UploadCode,
)
from broker.spec.warnings import CONTRACT_VARIABLES, GPU_VARIABLES

PAGE = (Path(__file__).parents[2] / "docs" / "spec.md").read_text(encoding="utf-8")
MODELS = (PipelineSpec, Component, Resources, Image, SifImage, GitCode, UploadCode, PathCode, Storage)


@pytest.mark.parametrize("model", MODELS)
def test_every_field_is_documented(model: type[BaseModel]) -> None:
    for name in model.model_fields:
        assert f"`{name}`" in PAGE or f'"{name}":' in PAGE, f"{model.__name__}.{name}"


@pytest.mark.parametrize("name", [*CONTRACT_VARIABLES, *GPU_VARIABLES])
def test_every_variable_of_the_contract_is_documented(name: str) -> None:
    assert f"`{name}" in PAGE


def test_the_exit_code_of_a_failed_setup_is_documented() -> None:
    assert f"- {SETUP_FAILED}:" in PAGE
