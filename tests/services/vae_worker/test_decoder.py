"""Decoding a batch: the same pictures as diffusers makes, and each failure laid where it belongs."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from services.vae_worker.decoder import BatchDecoder, DecodeFailure, Picture
from synerdiff.latents.client import Latents
from synerdiff.latents.cuda_driver import CudaClone
from synerdiff.models.device import DeviceFailed
from synerdiff.models.family import Images, VaeSide
from synerdiff.models.loading import load_vae_side
from tests.services.vae_worker.conftest import assert_decoded
from tests.services.vae_worker.stage import MODEL, latents_of
from tests.synerdiff.models.fake_gpu import FakeGpu
from tests.tiny_models import tiny_model

SIDE = 32


@dataclass
class FlakySide:
    """A real VAE that fails with `error`, whole or in bands: on more than `most` latents, on sevens, when `dead`."""

    side: VaeSide
    error: Exception
    most: int = 99
    dead: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.side, name)

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        if len(latents) > self.most or bool((latents == 7).any()):
            raise self.error
        return self.side.unscaled(latents)

    def decode(self, latents: torch.Tensor) -> Images:
        if self.dead:
            raise self.error
        self.unscaled(latents)
        return self.side.decode(latents)


def flaky(side: VaeSide, error: Exception, **how: Any) -> BatchDecoder:
    return BatchDecoder(FlakySide(side, error, **how))  # type: ignore[arg-type]


def as_stored(latents: torch.Tensor) -> list[Latents]:
    name = str(latents.dtype).removeprefix("torch.")
    return [
        Latents(memoryview(bytearray(one.contiguous().view(torch.uint8).numpy().tobytes())), name) for one in latents
    ]


def pixels(outcomes: list[Picture | DecodeFailure]) -> list[np.ndarray[Any, Any]]:
    assert all(isinstance(outcome, Picture) for outcome in outcomes), outcomes
    return [outcome.pixels for outcome in outcomes if isinstance(outcome, Picture)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pictures_equal_those_of_diffusers(vae_side: VaeSide, dtype: torch.dtype) -> None:
    latents = latents_of(3, SIDE, SIDE).to(dtype)
    found = pixels(BatchDecoder(vae_side).decode(as_stored(latents), SIDE, SIDE))
    assert_decoded(found, latents.float())


@pytest.mark.parametrize("most", [2, 1])
def test_a_batch_too_large_for_memory_is_halved(vae_side: VaeSide, most: int) -> None:
    latents = latents_of(5, SIDE, SIDE)
    decoder = flaky(vae_side, RuntimeError("DefaultCPUAllocator: can't allocate memory"), most=most)
    assert_decoded(pixels(decoder.decode(as_stored(latents), SIDE, SIDE)), latents)


def test_one_picture_too_large_for_memory_fails_alone(vae_side: VaeSide) -> None:
    decoder = flaky(vae_side, torch.OutOfMemoryError("CUDA out of memory"), most=0)
    [outcome] = decoder.decode(as_stored(latents_of(1, SIDE, SIDE)), SIDE, SIDE)
    assert isinstance(outcome, DecodeFailure)
    assert outcome.code == 8
    assert "CUDA out of memory" in outcome.message


class FakeDevice:
    """Stands for a CudaDevice whose memory holds one image's latents."""

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def copy_out(self, pointer: int, size_bytes: int) -> bytearray:
        return bytearray(self.data[:size_bytes])


def test_latents_on_a_gpu_reach_a_decoder_on_the_cpu(vae_side: VaeSide) -> None:
    stored = as_stored(latents_of(2, SIDE, SIDE))
    clones = [CudaClone(FakeDevice(one.host()), 0, len(one.data)) for one in stored]  # type: ignore[arg-type]
    batch = [Latents(clone, "float32") for clone in clones]
    expected = pixels(BatchDecoder(vae_side).decode(stored, SIDE, SIDE))
    np.testing.assert_array_equal(pixels(BatchDecoder(vae_side).decode(batch, SIDE, SIDE)), expected)


def test_a_batch_is_uploaded_at_once_and_waited_for_once(vae_side: VaeSide, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake of the device interface, however many latents come; no value of a tensor is asked for by the way."""
    gpu = FakeGpu()
    latents = latents_of(5, SIDE, SIDE)
    latents[1, 0, 0, 0] = float("inf")
    batch = as_stored(latents)
    batch[3] = Latents(batch[3].host()[:-4], "float32")
    decoder = BatchDecoder(replace(vae_side, compute=gpu))
    with monkeypatch.context() as patched:
        for asks in ("__bool__", "item"):
            patched.setattr(torch.Tensor, asks, lambda *_: pytest.fail("a tensor was waited for"))
        decoding = decoder.begin(batch, SIDE, SIDE, bands=1)
    assert gpu.asked == ["upload", "download"]
    assert decoding.advance(1.0)
    outcomes = decoding.outcomes()
    assert [place for place, outcome in enumerate(outcomes) if isinstance(outcome, DecodeFailure)] == [1, 3]
    assert_decoded(pixels([outcomes[place] for place in (0, 2, 4)]), latents[[0, 2, 4]])


def test_latents_may_be_overwritten_once_their_decode_has_begun(vae_side: VaeSide) -> None:
    latents = latents_of(2, SIDE, SIDE)
    batch = as_stored(latents)
    decoding = BatchDecoder(vae_side).begin(batch, SIDE, SIDE, bands=1)
    for one in batch:
        one.host()[:] = bytes(len(one.data))
    decoding.advance(1.0)
    assert_decoded(pixels(decoding.outcomes()), latents)


def test_latents_at_fault_fail_alone(vae_side: VaeSide) -> None:
    latents = latents_of(5, SIDE, SIDE)
    latents[1, 0, 0, 0] = float("nan")
    latents[3, 0, 0, 0] = 7  # what the flaky VAE cannot digest
    batch = as_stored(latents)
    batch[4] = Latents(batch[4].host()[:-4], "float32")
    outcomes = flaky(vae_side, RuntimeError("odd input")).decode(batch, SIDE, SIDE)
    failures = {i: o.message for i, o in enumerate(outcomes) if isinstance(o, DecodeFailure)}
    assert set(failures) == {1, 3, 4}
    assert "not finite" in failures[1]
    assert "odd input" in failures[3]
    assert f"its slot holds {len(batch[4].data)}" in failures[4]
    assert {o.code for o in outcomes if isinstance(o, DecodeFailure)} == {13}


def test_a_dead_device_is_not_blamed_on_the_input(vae_side: VaeSide) -> None:
    decoder = flaky(vae_side, RuntimeError("CUDA error: illegal address"), dead=True)
    with pytest.raises(DeviceFailed, match="illegal address"):
        decoder.decode(as_stored(latents_of(2, SIDE, SIDE)), SIDE, SIDE)


def test_flagged_pictures_are_black(tmp_path: Path) -> None:
    path = tiny_model("sd1", tmp_path, safety_checker=True, safety_threshold=-1.0)
    side = load_vae_side(path, torch.float32)
    channels, height, width = side.latent_shape(64, 64)
    latents = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    for outcome in BatchDecoder(side).decode(as_stored(latents), 64, 64):
        assert isinstance(outcome, Picture)
        assert outcome.flagged
        assert not outcome.pixels.any()


def in_pieces(side: Any, batch: list[Latents], chunks: int = 4) -> list[Picture | DecodeFailure]:
    decoding = BatchDecoder(side).begin(batch, SIDE, SIDE, bands=4)
    for chunk in range(1, chunks):
        decoding.advance(chunk / chunks)
    assert decoding.advance(1.0)
    return decoding.outcomes()


def test_a_decode_in_pieces_makes_the_same_pictures(vae_side: VaeSide) -> None:
    latents = latents_of(3, SIDE, SIDE)
    assert_decoded(pixels(in_pieces(vae_side, as_stored(latents))), latents)


def test_a_decode_pauses_where_it_is_told_to(vae_side: VaeSide) -> None:
    decoding = BatchDecoder(vae_side).begin(as_stored(latents_of(1, SIDE, SIDE)), SIDE, SIDE, bands=2)
    assert not decoding.advance(0.3)
    assert not decoding.advance(0.3)
    with pytest.raises(RuntimeError, match="not finished"):
        decoding.outcomes()
    assert decoding.advance(1.0)
    assert decoding.advance(1.0)
    assert len(decoding.outcomes()) == 1


def test_one_band_is_one_piece(vae_side: VaeSide) -> None:
    assert BatchDecoder(vae_side).begin(as_stored(latents_of(1, SIDE, SIDE)), SIDE, SIDE, bands=1).advance(0.01)


def test_nothing_to_decode_is_done_at_once(vae_side: VaeSide) -> None:
    decoding = BatchDecoder(vae_side).begin([Latents(memoryview(b"x"), "float32")], SIDE, SIDE, bands=2)
    assert decoding.advance(0.0)
    assert isinstance(decoding.outcomes()[0], DecodeFailure)


def test_failures_in_bands_are_laid_where_they_belong(vae_side: VaeSide) -> None:
    latents = latents_of(4, SIDE, SIDE)
    latents[1, 0, 0, 0] = float("nan")
    latents[2, 0, 0, 0] = 7
    outcomes = in_pieces(FlakySide(vae_side, RuntimeError("odd input")), as_stored(latents))
    failures = {i: o.message for i, o in enumerate(outcomes) if isinstance(o, DecodeFailure)}
    assert set(failures) == {1, 2}
    assert "odd input" in failures[2]
    assert_decoded(pixels([outcomes[0], outcomes[3]]), latents[[0, 3]])


def test_no_memory_in_bands_halves_the_batch(vae_side: VaeSide) -> None:
    no_memory = torch.OutOfMemoryError("CUDA out of memory")
    batch = as_stored(latents_of(3, SIDE, SIDE))
    assert len(pixels(in_pieces(FlakySide(vae_side, no_memory, most=1), batch))) == 3
    assert {
        o.code for o in in_pieces(FlakySide(vae_side, no_memory, most=0), batch) if isinstance(o, DecodeFailure)
    } == {8}


def test_a_device_that_dies_in_bands_is_not_blamed_on_the_input(vae_side: VaeSide) -> None:
    dead = FlakySide(vae_side, RuntimeError("CUDA error: illegal address"), most=0, dead=True)
    with pytest.raises(DeviceFailed, match="illegal address"):
        in_pieces(dead, as_stored(latents_of(1, SIDE, SIDE)))


def test_a_vae_that_is_not_known_is_decoded_whole_with_one_warning() -> None:
    side = load_vae_side(MODEL, torch.float32)
    side.vae.enable_slicing()
    decoder = BatchDecoder(side)
    batch = as_stored(latents_of(1, SIDE, SIDE))
    with capture_logs() as logs:
        for _ in range(2):
            decoding = decoder.begin(batch, SIDE, SIDE, bands=4)
            assert decoding.advance(0.1)
            assert len(pixels(decoding.outcomes())) == 1
    assert [log["reason"] for log in logs] == ["vae: use_slicing is set"]


def test_an_exact_picture_is_the_same_however_the_others_are_decoded(vae_side: VaeSide) -> None:
    """Whole, alone and eager, with contiguous weights: whatever was compiled, measured or planned."""

    def refuse(_: torch.Tensor) -> Images:
        raise AssertionError("an exact picture was decoded otherwise")

    (latents,) = as_stored(latents_of(1, SIDE, SIDE))
    fresh = BatchDecoder(vae_side).begin([latents], SIDE, SIDE, bands=1, exact=True)
    assert fresh.advance(1.0)
    laid_out = replace(vae_side, vae=copy.deepcopy(vae_side.vae).to(memory_format=torch.channels_last))
    other = BatchDecoder(laid_out, refuse).begin([latents], SIDE, SIDE, bands=4, exact=True)
    assert other.advance(0.01), "it is one piece"
    np.testing.assert_array_equal(pixels(fresh.outcomes()), pixels(other.outcomes()))
    with pytest.raises(ValueError, match="2 images"):
        BatchDecoder(vae_side).begin([latents, latents], SIDE, SIDE, bands=1, exact=True)
