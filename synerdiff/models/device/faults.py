"""Classifies errors: too little memory, a device that is lost to this process, or neither.

A *sticky* CUDA error breaks the process's context: every later call fails with it, and only a new process helps. torch
raises them as `torch.AcceleratorError` with an `error_code` (before 2.8 as a plain RuntimeError), and the libraries on
top with errors of their own. Numbers and words are those of cudaError_t and cudaGetErrorString (CUDA 12 and 13).
"""

from enum import Enum, auto

import torch

# cudaErrorMemoryAllocation. A failing cuBLAS or cuDNN handle says it in words.
_MEMORY_ALLOCATION = 2
_NO_MEMORY = (
    "can't allocate memory",  # torch on CPUs, a plain RuntimeError
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_FATAL_CODES = frozenset({46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721})
_FATAL_MPS_CODES = frozenset({805, 806, 807, 810})
_FATAL = (
    "an illegal memory access was encountered",
    "device-side assert triggered",
    "unspecified launch failure",
    "misaligned address",
    "an illegal instruction was encountered",
    "invalid program counter",
    "hardware stack error",
    "operation not supported on global/shared address space",
    "the launch timed out and was terminated",
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error",
    "context is destroyed",
    "device(s) is/are busy or unavailable",
    "MPS client failed to connect",
    "MPS server and the MPS client failed",
    "MPS server is not ready",
    "MPS client has been terminated",
)


class Fault(Enum):
    """The cause of an error: memory, the device, or another (the input, a library, our code)."""

    OUT_OF_MEMORY = auto()
    FATAL = auto()
    OTHER = auto()


class DeviceFailed(Exception):
    """The device no longer computes in this process: no input is at fault, and only a new process may help."""


def fault_of(error: BaseException) -> Fault:
    """The fault behind an error of a computation."""
    text, code = str(error), getattr(error, "error_code", None)
    if isinstance(error, DeviceFailed):
        return Fault.FATAL
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or code == _MEMORY_ALLOCATION:
        return Fault.OUT_OF_MEMORY
    if not isinstance(error, RuntimeError):
        return Fault.OTHER
    if any(words in text for words in _NO_MEMORY):
        return Fault.OUT_OF_MEMORY
    if code in _FATAL_CODES or code in _FATAL_MPS_CODES or any(words in text for words in _FATAL):
        return Fault.FATAL
    return Fault.OTHER
