"""Captures of the CUDA device, over a fake of torch.cuda's graph API: what torch's allocator holds against them."""

import pytest
import torch

from synerdiff.models.device.cuda import CudaDevice
from tests.synerdiff.models.fake_cuda_graphs import TOTAL_BYTES, WORKSPACE_BYTES, FakeCuda


@pytest.fixture(params=[False, True], ids=["workspaces outlive graphs", "workspaces go with graphs"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(clears_at_reset=request.param)
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def device(cuda: FakeCuda) -> CudaDevice:
    return CudaDevice(torch.device("cuda", 0))


def multiplied(cuda: FakeCuda) -> torch.Tensor:
    return cuda.multiply(torch.ones(1))


def test_graphs_are_captured_again_after_all_were_dropped(device: CudaDevice, cuda: FakeCuda) -> None:
    for _ in range(3):
        first, second = (device.capture(lambda: multiplied(cuda)) for _ in range(2))
        first.replay()
        second.replay()
        del first, second
    assert cuda.replays == 6


def test_a_graph_that_is_dropped_takes_no_memory_from_the_others(device: CudaDevice, cuda: FakeCuda) -> None:
    dropped, kept = (device.capture(lambda: multiplied(cuda)) for _ in range(2))
    del dropped
    device.free_caches()
    kept.replay()


def test_what_captures_hold_is_their_pool_and_an_allowance_each(device: CudaDevice, cuda: FakeCuda) -> None:
    cuda.others = [{"device": 1, "segment_pool_id": (0, 1), "total_size": TOTAL_BYTES}]
    assert device.captured_bytes() == 0
    captured = [device.capture(lambda: multiplied(cuda)) for _ in range(2)]
    held = device.captured_bytes()
    del captured[0]
    assert WORKSPACE_BYTES < device.captured_bytes() < held


def test_the_memory_of_dropped_graphs_goes_back_to_the_gpu(device: CudaDevice, cuda: FakeCuda) -> None:
    captured = device.capture(lambda: multiplied(cuda))
    assert cuda.pools
    del captured
    device.free_caches()
    assert not cuda.pools
    assert not cuda.segments()


def test_a_capture_that_fails_to_begin_leaves_the_thread_on_its_own_stream(device: CudaDevice, cuda: FakeCuda) -> None:
    cuda.begin_fails = RuntimeError("CUDA error: operation not permitted")
    with pytest.raises(RuntimeError, match="not permitted"):
        device.capture(lambda: multiplied(cuda))
    assert cuda.stream is cuda.default_stream
    cuda.begin_fails = None
    device.free_caches()
    device.capture(lambda: multiplied(cuda)).replay()


def test_a_capture_that_fails_to_end_leaves_the_thread_on_its_own_stream(device: CudaDevice, cuda: FakeCuda) -> None:
    with pytest.raises(RuntimeError, match="previous error"):
        device.capture(lambda: cuda.break_if_captured(torch.ones(1)))
    assert cuda.stream is cuda.default_stream


def test_a_capture_that_fails_to_end_leaves_other_graphs_and_later_captures_alone(
    device: CudaDevice, cuda: FakeCuda
) -> None:
    before = device.capture(lambda: multiplied(cuda))
    with pytest.raises(RuntimeError, match="previous error"):
        device.capture(lambda: cuda.break_if_captured(torch.ones(1)))
    device.free_caches()
    after = device.capture(lambda: multiplied(cuda))
    del before
    device.free_caches()
    device.capture(lambda: multiplied(cuda)).replay()
    after.replay()


def test_a_call_that_fails_in_a_capture_that_ends_well_leaves_nothing_behind(
    device: CudaDevice, cuda: FakeCuda
) -> None:
    def no_memory() -> torch.Tensor:
        if cuda.stream is cuda.default_stream:
            return torch.ones(1)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        device.capture(no_memory)
    device.free_caches()
    assert not cuda.pools
    device.capture(lambda: multiplied(cuda)).replay()
