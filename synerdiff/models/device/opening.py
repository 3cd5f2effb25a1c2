"""The device of a process, by the name that settings use."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from synerdiff.models.device.contract import Device
from synerdiff.models.device.cpu import CpuDevice
from synerdiff.models.device.cuda import CudaDevice


@dataclass(frozen=True)
class DeviceOptions:
    """Options for GPUs alone.

    `cuda_graphs`: replay them. `memory_limit_bytes`: most device memory to take; 0: the part `memory_share` of all
    there is. `cudnn_benchmark`: let cuDNN time its kernels at the first call of each shape.
    """

    cuda_graphs: bool = True
    memory_limit_bytes: int = 0
    memory_share: float = 1.0
    cudnn_benchmark: bool = False


@lru_cache(maxsize=8)
def open_device(name: str, options: DeviceOptions = DeviceOptions()) -> Device:
    """The device "cpu", "cuda" or "cuda:N", one object for the same arguments. Raises RuntimeError without that GPU."""
    device = torch.device(name)
    if device.type == "cpu":
        return CpuDevice()
    return CudaDevice(
        device,
        captures=options.cuda_graphs,
        memory_limit_bytes=options.memory_limit_bytes,
        memory_share=options.memory_share,
        cudnn_benchmark=options.cudnn_benchmark,
    )


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_from_name(name: str, device: Device | None = None) -> torch.dtype:
    """ "float32", "bfloat16", "float16", or "auto": `device`'s fastest (None: the CPU's). Else raises ValueError."""
    if name == "auto":
        return (device or open_device("cpu")).fastest_dtype
    if name not in _DTYPES:
        raise ValueError(f'dtype: {name!r} is none of "auto", {", ".join(repr(known) for known in _DTYPES)}')
    return _DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The name that `dtype_from_name` takes: "float32"."""
    return str(dtype).removeprefix("torch.")
