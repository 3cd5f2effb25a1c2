"""Sections 0, 1 and 8: the machine and its ceilings, tests/gpu, and latents from process to process."""

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench.command import machine
from bench.gpu import mps
from bench.gpu.calls import median_ms
from bench.gpu.kit import PYTEST_LOG, Kit
from bench.gpu.runner import ROOT
from bench.latents import Experiment, Trial

_PACKAGES = ("transformers", "grpcio", "protobuf", "redis", "triton", "cuda-bindings")
_SIDE, _TINY_SIDE = 8192, 256
_COPY_BYTES, _TINY_COPY_BYTES = 2 << 30, 1 << 22
_MATMUL_DTYPES = ("float16", "bfloat16", "float32")


def machine_section(kit: Kit) -> None:
    kit.record("machine", **machine(), **_of_gpu(kit), packages=_versions(), shm_mib=_free_mib("/dev/shm"))
    for dtype in _MATMUL_DTYPES:
        kit.record("ceiling", what=f"matmul {dtype}", tflops=_matmul_tflops(kit, getattr(torch, dtype)))
    kit.record("ceiling", what="copy", tb_per_s=_copy_tb_per_s(kit))
    kit.record("mps", said="there is no GPU" if kit.tiny else mps.probe(kit), program=mps.control_program())


def _of_gpu(kit: Kit) -> dict[str, Any]:
    if kit.tiny:
        return {"card": "no GPU (tiny models on a CPU)"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "card": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": _driver(),
    }


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown: no nvidia-smi"
    asked = [program, "--query-gpu=driver_version,compute_mode,mig.mode.current", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False).stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _free_mib(folder: str) -> int:
    return os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize >> 20 if os.path.isdir(folder) else 0


def _matmul_tflops(kit: Kit, dtype: torch.dtype) -> float:
    side = _TINY_SIDE if kit.tiny else _SIDE
    a, b = (torch.randn(side, side, device=kit.device, dtype=dtype) for _ in range(2))
    ms = median_ms(lambda: a @ b, kit.device, 0.1 if kit.tiny else 0.6)
    return round(2 * side**3 / ms / 1e9, 3)


def _copy_tb_per_s(kit: Kit) -> float:
    """Bytes read and written."""
    size = _TINY_COPY_BYTES if kit.tiny else _COPY_BYTES
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=kit.device)
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source), kit.device, 0.1 if kit.tiny else 0.6)
    return round(2 * size / ms / 1e9, 4)


# Fewer than `make test-gpu` makes: there are ten minutes for everything.
_AMOUNTS = {"SYNERDIFF_TEST_TRANSFERS": "2000", "SYNERDIFF_TEST_KILLS": "6"}
_OUTCOMES = ("failure", "error", "skipped")
_MOST_MESSAGE = 600


def gpu_tests(kit: Kit) -> None:
    """Run them, keep their output, and record how each ended. Raises RuntimeError where one failed, or none ran."""
    import pytest

    os.environ |= _AMOUNTS
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "junit.xml")
        with _said_to(kit.out / PYTEST_LOG):
            options = ["-p", "no:cacheprovider", "-o", "junit_family=xunit2", f"--junit-xml={found}"]
            status = pytest.main(["-m", "gpu", "-s", "tests/gpu", *options])
        outcomes = _record(kit, found) if found.exists() else Counter[str]()
    if status or outcomes["failed"]:
        raise RuntimeError(f"pytest ended with {status:d}; {PYTEST_LOG} says why")
    if not (outcomes["passed"] or kit.tiny):
        raise RuntimeError(f"no test found a GPU; {PYTEST_LOG} says why")


@contextlib.contextmanager
def _said_to(log: Path) -> Iterator[None]:
    """Redirects all output of this process and its children to a file."""
    before = [os.dup(descriptor) for descriptor in (1, 2)]
    with log.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        for descriptor, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, descriptor)


def _record(kit: Kit, found: Path) -> Counter[str]:
    outcomes = Counter[str]()
    for case in ElementTree.parse(found).getroot().iter("testcase"):
        outcome = next((child for child in case if child.tag in _OUTCOMES), None)
        name = "passed" if outcome is None else {"failure": "failed", "error": "failed"}.get(outcome.tag, outcome.tag)
        outcomes[name] += 1
        message = "" if outcome is None else (outcome.get("message") or "")[:_MOST_MESSAGE]
        kit.record("test", test=case.get("name"), outcome=name, s=float(case.get("time", 0)), message=message)
    return outcomes


# A killed process's context goes a little later.
_TOLERANCE_BYTES = 64 << 20


def latents(kit: Kit) -> None:
    """Record the results. Raises AssertionError where a transfer was torn, stale or lost."""
    under_mps = mps.works(kit)
    daemon: AbstractContextManager[None] = mps.daemon() if under_mps else nullcontext()
    transports = ("shm",) if kit.tiny else ("cuda_ipc", "shm")
    transfers, kills = (40, 1) if kit.tiny else (1500, 5)
    trial = Trial(transfers, kills, transports, slot_bytes=131072, leak_tolerance_bytes=_TOLERANCE_BYTES)
    with daemon:
        found = asyncio.run(Experiment(trial).run())
    kit.record(
        "latents",
        way="MPS" if under_mps else "without MPS",
        whole=found.whole,
        transports=dict(found.transports),
        kills=dict(found.kills),
        violations=found.violations[:20],
        read_ms_p50=statistics.median(found.read_ms) if found.read_ms else None,
        open_ms=[round(ms, 2) for ms in found.open_ms],
        seconds=round(found.seconds, 1),
    )
    assert not found.violations, found.summary()
