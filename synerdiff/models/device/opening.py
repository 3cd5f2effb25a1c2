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
