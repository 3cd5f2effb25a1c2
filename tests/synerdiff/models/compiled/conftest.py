"""A store of the test's own, and a subject that no model has."""

from pathlib import Path

import pytest

from synerdiff.models.compiled.store import CompileSubject, PackageStore


@pytest.fixture
def store(tmp_path: Path) -> PackageStore:
    return PackageStore(tmp_path / "store")


@pytest.fixture
def subject() -> CompileSubject:
    return CompileSubject("unet", "/models/one", "0123456789abcdef" * 4, "float32", (4, 8, 8))
