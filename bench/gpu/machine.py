"""Section 0: what this machine is, whether CUDA MPS can be had, and the ceilings that the other figures are held to."""

import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from bench.gpu import mps
from bench.gpu.kit import Kit
from bench.gpu.timing import median_ms
from bench.reporting import machine

_PACKAGES = ("transformers", "grpcio", "protobuf", "redis", "triton", "cuda-bindings")
_SIDE, _TINY_SIDE = 8192, 256
_COPY_BYTES, _TINY_COPY_BYTES = 2 << 30, 1 << 22
_MATMUL_DTYPES = ("float16", "bfloat16", "float32")


def run(kit: Kit) -> None:
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
