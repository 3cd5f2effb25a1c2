"""Dtypes by name."""

import pytest
import torch

from synerdiff.models.device.opening import dtype_from_name


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_by_name(name: str) -> None:
    assert dtype_from_name(name) == getattr(torch, name)


@pytest.mark.parametrize(
    ("has_amx", "kernels", "dtype"),
    [
        (True, "AVX512", torch.bfloat16),
        (False, "AVX512", torch.float32),
        (True, "AVX2", torch.float32),
        (True, "DEFAULT", torch.float32),
    ],
)
def test_auto_is_bfloat16_only_where_the_cpu_does_it(
    monkeypatch: pytest.MonkeyPatch, has_amx: bool, kernels: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kernels)
    assert dtype_from_name("auto") == dtype


def test_another_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'int8' is none of \"auto\", 'float32', 'bfloat16', 'float16'"):
        dtype_from_name("int8")
