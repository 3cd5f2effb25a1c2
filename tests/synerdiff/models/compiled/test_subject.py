"""The name of a package: all that its machine code depends on tells it from others, and nothing else does."""

import platform
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from synerdiff.models.compiled import CompileSubject
from synerdiff.models.compiled import subject as module

CHANGES: dict[str, Any] = {
    "component": "vae",
    "component_digest": "f" * 64,
    "dtype": "bfloat16",
    "latent_shape": (4, 8, 16),
    "variant": "fp16",
}


@pytest.fixture
def instruction_sets() -> Iterator[None]:
    """Instruction sets are read anew, before the test and after it."""
    module._instruction_sets.cache_clear()
    yield
    module._instruction_sets.cache_clear()


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_key(subject: CompileSubject, name: str) -> None:
    other = replace(subject, **{name: CHANGES[name]})
    assert other.key != subject.key
    assert other.file_name != subject.file_name


def test_all_fields_are_tried_and_only_where_the_model_lies_does_not_count(subject: CompileSubject) -> None:
    assert {field.name for field in fields(CompileSubject)} == {*CHANGES, "model"}
    elsewhere = replace(subject, model="/elsewhere")
    assert elsewhere.key == subject.key
    assert elsewhere.file_name == subject.file_name


def test_a_file_name_lies_in_its_directory_and_says_what_it_is_of(subject: CompileSubject) -> None:
    assert Path(subject.file_name).name == subject.file_name
    assert subject.file_name == f"unet-4x8x8-float32-{subject.key}.pt2"
    assert len(subject.key) == 20


def test_another_torch_has_another_key(subject: CompileSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    before = subject.key
    monkeypatch.setattr(torch, "__version__", torch.__version__ + ".other")
    assert subject.key != before


def test_another_recipe_has_another_key(subject: CompileSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    before = subject.key
    monkeypatch.setattr(module, "RECIPE", module.RECIPE + 1)
    assert subject.key != before


@pytest.mark.usefixtures("instruction_sets")
def test_another_cpu_has_another_key(subject: CompileSubject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def key_on(info: str) -> str:
        (tmp_path / "cpuinfo").write_text(info)
        module._instruction_sets.cache_clear()
        return subject.key

    monkeypatch.setattr(module, "_CPU_INFO", tmp_path / "cpuinfo")
    intel = key_on("processor\t: 0\ncpu MHz\t: 2000\nflags\t\t: sse avx avx512f\n")
    assert key_on("processor\t: 1\ncpu MHz\t: 3000\nflags\t\t: avx512f sse avx\n") == intel, "neither order nor clock"
    less = key_on("processor\t: 0\nflags\t\t: sse avx\n")
    arm = key_on("processor\t: 0\nFeatures\t: fp asimd sve\n")
    none = key_on("processor\t: 0\n")
    monkeypatch.setattr(platform, "machine", lambda: "another")
    assert len({intel, less, arm, none, key_on("processor\t: 0\n")}) == 5


@pytest.mark.usefixtures("instruction_sets")
def test_a_machine_that_does_not_list_its_flags_has_a_key(
    subject: CompileSubject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_CPU_INFO", tmp_path / "none")
    assert len(subject.key) == 20


def test_another_process_reads_the_same_subject(subject: CompileSubject) -> None:
    for one in (subject, *(replace(subject, **{name: changed}) for name, changed in CHANGES.items())):
        read = CompileSubject.from_json(one.to_json())
        assert read == one
        assert read.key == one.key
