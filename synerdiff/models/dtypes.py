"""Dtypes by the names that settings use."""

import torch

from synerdiff.models.device import Device, open_device

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
