"""Dtypes by name."""

import pytest
import torch

from synerdiff.models.dtypes import dtype_from_name


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_by_name(name: str) -> None:
    assert dtype_from_name(name) == getattr(torch, name)


@pytest.mark.parametrize(("has_amx", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_only_where_the_cpu_does_it(
    monkeypatch: pytest.MonkeyPatch, has_amx: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx, raising=False)
    assert dtype_from_name("auto") == dtype


def test_another_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'int8' is none of \"auto\", 'float32', 'bfloat16', 'float16'"):
        dtype_from_name("int8")
