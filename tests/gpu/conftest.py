"""What needs a real NVIDIA GPU: `make test-gpu`. These tests have never been run on one.

Without a GPU each is skipped with the reason. Tests that need a CUDA build of torch besides take the fixture `cuda`.
"""

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """Skips without a GPU that the driver and cuda-bindings can use; looked at from another process."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pytest.skip("no GPU: there is no CUDA driver (libcuda.so.1) on this machine")
    settings = json.dumps({"transports": [], "cuda_device": 0})
    command = [sys.executable, "-m", "bench.latents_sides", "free", settings]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if found.returncode:
        pytest.skip(f"no GPU that can be used: {found.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="session")
def cuda() -> Any:
    """torch, where it is a CUDA build that finds the GPU."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU: it takes a CUDA build of torch")
    return torch
