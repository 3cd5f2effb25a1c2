"""Dtypes by the names that settings use."""

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_from_name(name: str, device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype of a name: "float32", "bfloat16", "float16", or "auto" for the fastest that `device` does natively.

    Raises ValueError for another name.
    """
    if name == "auto":
        return _fastest(torch.device(device))
    if name not in _DTYPES:
        raise ValueError(f'dtype: {name!r} is none of "auto", {", ".join(repr(known) for known in _DTYPES)}')
    return _DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The name that `dtype_from_name` takes: "float32"."""
    return str(dtype).removeprefix("torch.")


def _fastest(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.float16
    # Without AMX tiles a CPU emulates bf16 convolutions, many times slower than fp32.
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return torch.bfloat16 if has_amx is not None and has_amx() else torch.float32
