"""What is counted of a real GPU's memory, and the VAE's dtypes, formats and bands there. Never been run on a GPU."""

from typing import Any

import pytest

from services.vae_worker.bands import band_moments
from services.vae_worker.chunked_decoder import ChunkedDecoder
from synerdiff.models.device import Device, DeviceOptions, open_device
from synerdiff.models.device.cuda import CudaDevice
from synerdiff.models.loading import load_vae_side
from synerdiff.models.memory_format import settle_memory_format
from tests.gpu.test_workers import LEAST_PSNR_DB, MODEL, psnr_db

MIB = 2**20


@pytest.fixture(scope="module")
def device(cuda: Any) -> Device:
    return open_device("cuda")


def test_what_a_replayed_graph_computes_in_is_counted(device: Device, cuda: Any) -> None:
    """A call whose 256 MiB in between are no tensor's once it is captured."""
    start = cuda.ones(64 * MIB, device=device.torch_device)
    captured = device.capture(lambda: (start + 1).sum())
    device.free_caches()
    device.restart_peak()
    allocated = cuda.cuda.memory_allocated()
    captured.replay()
    cuda.cuda.synchronize()
    assert cuda.cuda.max_memory_allocated() < allocated + 256 * MIB, "torch's own count would do"
    assert device.peak_bytes() >= allocated + 256 * MIB
    assert device.peak_bytes() <= cuda.cuda.max_memory_reserved()


def test_the_allocator_is_held_to_a_share(cuda: Any) -> None:
    total = cuda.cuda.get_device_properties(0).total_memory
    held = CudaDevice(cuda.device("cuda"), DeviceOptions(memory_share=0.1))
    try:
        assert held.memory_limit_bytes() == int(0.1 * total)
        with pytest.raises(cuda.OutOfMemoryError):
            cuda.empty(int(0.11 * total), dtype=cuda.uint8, device="cuda")
    finally:
        cuda.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_pictures_of_a_vae_in_half_precision(device: Device, cuda: Any, name: str) -> None:
    plain = load_vae_side(MODEL, cuda.float32, safety_checker=False, device=device)
    side = load_vae_side(MODEL, cuda.float32, vae_dtype=getattr(cuda, name), safety_checker=False, device=device)
    latents = cuda.randn(2, *side.latent_shape(*side.native_size), generator=cuda.Generator().manual_seed(0))
    found = [psnr_db(*pair) for pair in zip(side.decode(latents), plain.decode(latents), strict=True)]
    print(f"PSNR of a VAE in {name} to float32, dB:", [round(db, 1) for db in found])
    assert min(found) > LEAST_PSNR_DB


def test_the_memory_format_is_measured_by_the_gpus_own_clock(device: Device, cuda: Any) -> None:
    side = load_vae_side(MODEL, cuda.float16, safety_checker=False, device=device)
    latents = cuda.randn(4, *side.latent_shape(*side.native_size)).to(device.torch_device, side.vae_dtype)
    with cuda.no_grad():
        choice = settle_memory_format(side.vae, lambda n: side.vae.decode(latents[:n]), device, 4)
    print(f"{choice.name}: channels_last takes {choice.ratio} of the time of contiguous weights, {choice.pairs} pairs")
    assert choice.pairs >= 3


@pytest.mark.parametrize("lies", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("name", ["float32", "float16"])
def test_bands_of_either_format_are_the_whole_decode(device: Device, cuda: Any, lies: str, name: str) -> None:
    side = load_vae_side(MODEL, getattr(cuda, name), safety_checker=False, device=device)
    side.vae.to(memory_format=getattr(cuda, lies))
    latents = cuda.randn(2, *side.latent_shape(512, 512), generator=cuda.Generator().manual_seed(0))
    unscaled = side.unscaled(latents)
    whole, bands = side.images(side.decoded(unscaled)), side.images(ChunkedDecoder(side.vae).decode(unscaled, 4))
    assert min(psnr_db(*pair) for pair in zip(bands, whole, strict=True)) > 40


def test_moments_of_a_band_are_those_of_float64(device: Device, cuda: Any) -> None:
    band = (5 + cuda.randn(2, 64, 32, 512, generator=cuda.Generator().manual_seed(0))).to(
        device.torch_device, cuda.half
    )
    found = band_moments(band, 32)
    exact = band.double().reshape(2, 32, -1)
    assert (found.mean - exact.mean(-1)).abs().max() < 1e-4
    assert (found.var / exact.var(-1, correction=0) - 1).abs().max() < 1e-4


def test_options_reach_cudnn(cuda: Any) -> None:
    before = cuda.backends.cudnn.benchmark
    try:
        open_device("cuda", DeviceOptions(cudnn_benchmark=True))
        assert cuda.backends.cudnn.benchmark
    finally:
        cuda.backends.cudnn.benchmark = before
