"""Batches that cannot be computed at once: in their order, in halves, down to the failing one alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synerdiff.models.device import DeviceFailed, Fault
from synerdiff.worker.halving import Halves

NO_MEMORY = torch.OutOfMemoryError("no room")


@given(st.sets(st.integers(0, 9)), st.integers(1, 10))
def test_all_but_what_fails_alone_is_computed_in_order(poison: set[int], room: int) -> None:
    halves, computed, given_up, freed = Halves(tuple(range(10)), lambda: freed.append(1)), [], [], list[int]()
    too_many = []
    while halves:
        part = halves.parts[0]
        if poison & set(part):
            fault = halves.failed(ValueError("bad input"))
            given_up += [*part] if fault else []
            assert fault in (None, Fault.OTHER)
        elif len(part) > room:
            too_many.append(len(part))
            assert halves.failed(NO_MEMORY) is None
        else:
            computed += [*part]
            halves.done()
    assert computed == sorted(set(range(10)) - poison)
    assert given_up == sorted(poison)
    assert len(freed) == len(too_many)
    assert halves.take_halved() == min(too_many, default=0)
    assert halves.take_halved() == 0


def test_a_lost_device_is_not_tried_again() -> None:
    halves = Halves((1, 2), lambda: None)
    with pytest.raises(DeviceFailed, match="launch failure"):
        halves.failed(torch.AcceleratorError("CUDA error: unspecified launch failure"))


def test_one_that_memory_does_not_suffice_for_is_given_up() -> None:
    halves = Halves((1,), lambda: None)
    assert halves.failed(NO_MEMORY) is Fault.OUT_OF_MEMORY
    assert not halves
    assert halves.take_halved() == 0
