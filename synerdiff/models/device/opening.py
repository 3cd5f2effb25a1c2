"""The device of a process, by the name that settings use."""

from functools import lru_cache

import torch

from synerdiff.models.device.contract import DEFAULTS, Device, DeviceOptions
from synerdiff.models.device.cpu import CpuDevice
from synerdiff.models.device.cuda import CudaDevice

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@lru_cache(maxsize=8)
def open_device(name: str, options: DeviceOptions = DEFAULTS) -> Device:
    """The device "cpu", "cuda" or "cuda:N", one object for the same arguments. Raises RuntimeError without that GPU."""
    device = torch.device(name)
    return CpuDevice() if device.type == "cpu" else CudaDevice(device, options)


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
