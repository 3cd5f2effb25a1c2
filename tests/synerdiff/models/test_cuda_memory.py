"""What a CUDA device says of its memory, on a fake of torch.cuda's memory API. Never run on a GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.scheduler.profiles.measuring.findings import USABLE, within_memory
from services.unet_worker.settings import UnetWorkerSettings
from services.vae_worker.settings import VaeWorkerSettings
from synerdiff.models.device import DeviceOptions
from synerdiff.models.device.cuda import CudaDevice
from synerdiff.models.loading import load_vae_side
from synerdiff.mps import DeviceShare
from synerdiff.profiles import ItemCaps
from synerdiff.settings import load
from synerdiff.worker.loading import worker_record
from tests.services.scheduler.measured_profiles import record
from tests.services.scheduler.simulated import straight_line_profile
from tests.synerdiff.models.fake_torch_cuda import FakeTorchCuda
from tests.values import CARD

GIB = 2**30
TOTAL = 80 * GIB
GRAPHS = (0, 1)
WEIGHTS, ACTIVATIONS, OUTPUT = 5 * GIB, 6 * GIB, GIB


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeTorchCuda:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    fake = FakeTorchCuda(TOTAL)
    fake.install(monkeypatch)
    fake.allocate(WEIGHTS)
    return fake


def opened(**options: object) -> CudaDevice:
    return CudaDevice(torch.device("cuda"), DeviceOptions(**options))  # type: ignore[arg-type]


def capture(cuda: FakeTorchCuda) -> None:
    """As a graph is captured: a call without one, its memory given back, then the same call in the graphs' pool."""
    cuda.free(cuda.allocate(ACTIVATIONS))
    cuda.empty_cache()
    activations = cuda.allocate(ACTIVATIONS, GRAPHS)
    cuda.allocate(OUTPUT, GRAPHS)
    cuda.free(activations)


def test_what_a_replayed_graph_computes_in_is_counted(cuda: FakeTorchCuda) -> None:
    device = opened()
    capture(cuda)
    device.restart_peak()  # a replay asks the allocator for nothing
    assert torch.cuda.max_memory_allocated() == WEIGHTS + OUTPUT
    assert device.peak_bytes() == WEIGHTS + OUTPUT + ACTIVATIONS


def test_a_plan_in_which_a_graph_is_captured_counts_it_once(cuda: FakeTorchCuda) -> None:
    device = opened()
    device.restart_peak()
    capture(cuda)
    assert device.peak_bytes() == WEIGHTS + OUTPUT + ACTIVATIONS


def test_what_is_computed_beside_graphs_comes_on_top_of_them(cuda: FakeTorchCuda) -> None:
    device = opened()
    capture(cuda)
    device.restart_peak()
    cuda.free(cuda.allocate(2 * GIB))
    assert device.peak_bytes() == WEIGHTS + OUTPUT + ACTIVATIONS + 2 * GIB


def test_graphs_that_are_gone_count_no_more(cuda: FakeTorchCuda) -> None:
    device = opened()
    capture(cuda)
    device.restart_peak()
    cuda.release_pool(GRAPHS)
    device.free_caches()
    device.restart_peak()
    assert device.peak_bytes() == WEIGHTS + OUTPUT


def test_pools_are_walked_only_after_they_may_have_changed(cuda: FakeTorchCuda) -> None:
    device = opened()
    capture(cuda)
    for _ in range(5):
        device.restart_peak()
        cuda.free(cuda.allocate(GIB))
        for _ in range(3):
            device.peak_bytes()
    assert cuda.snapshots == 2  # at first, and when the allocator took memory for what is allocated again and again


def test_two_workers_that_nobody_limits_share_a_gpu(cuda: FakeTorchCuda) -> None:
    shares = load(UnetWorkerSettings, []).memory_share, load(VaeWorkerSettings, []).memory_share
    devices = [opened(memory_share=share) for share in shares]
    limits = [device.memory_limit_bytes() for device in devices]
    assert limits == [int(share * TOTAL) for share in shares]
    assert sum(limits) <= TOTAL * USABLE, "what CUDA and libraries take besides has to fit too"
    profile = straight_line_profile(caps=ItemCaps(32, 16))
    profile = profile.with_cells(
        replace(cell, unet_bytes=cell.rows * 4 * GIB, vae_bytes=cell.decodes * 4 * GIB) for cell in profile.cells
    )
    unet, vae = record("unet", memory_limit_bytes=limits[0]), record("vae", memory_limit_bytes=limits[1])
    caps = within_memory(profile, unet, vae).caps
    assert caps.rows * 4 * GIB <= USABLE * limits[0]
    assert caps.vae * 4 * GIB <= USABLE * limits[1]


def test_the_allocator_is_held_to_the_limit(cuda: FakeTorchCuda) -> None:
    opened(memory_share=0.3)
    cuda.allocate(int(0.29 * TOTAL) - WEIGHTS)
    with pytest.raises(torch.OutOfMemoryError):
        cuda.allocate(int(0.02 * TOTAL))


@pytest.mark.parametrize(
    ("given", "share", "limit"),
    [(10 * GIB, 0.3, 10 * GIB), (0, 1.0, TOTAL), (100 * GIB, 0.3, TOTAL), (0, 0.25, TOTAL / 4)],
)
def test_a_limit_in_bytes_goes_before_a_share(cuda: FakeTorchCuda, given: int, share: float, limit: float) -> None:
    assert opened(memory_limit_bytes=given, memory_share=share).memory_limit_bytes() == limit
    assert cuda.fraction == limit / TOTAL


def test_a_workers_record_says_what_its_device_may_take(tmp_path: Path, cuda: FakeTorchCuda) -> None:
    settings = load(VaeWorkerSettings, [])
    device = opened(memory_share=settings.memory_share)
    side = replace(load_vae_side(settings.model, torch.float32, safety_checker=False), compute=device)
    assert worker_record("vae", "v", CARD, side, DeviceShare(), settings).memory_limit_bytes == int(0.3 * TOTAL)


@pytest.mark.parametrize("wanted", [True, False])
def test_cudnn_times_its_kernels_where_it_is_told_to(cuda: FakeTorchCuda, wanted: bool) -> None:
    opened(cudnn_benchmark=wanted)
    assert torch.backends.cudnn.benchmark is wanted
    assert load(UnetWorkerSettings, []).cudnn_benchmark
    assert not load(VaeWorkerSettings, []).cudnn_benchmark
