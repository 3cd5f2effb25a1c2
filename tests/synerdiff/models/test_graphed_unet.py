"""UNet calls replayed from captures, on a fake of the device interface: keys, padding, bound and fall-back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from services.scheduler.profiles.measuring.stages import LADDER
from synerdiff.models import graphed_unet
from synerdiff.models.device import DeviceFailed
from synerdiff.models.family import Conditioning, UnetSide
from synerdiff.models.graphed_unet import GraphedUnet, common_sizes, padded_rows
from synerdiff.models.loading import load_unet_side
from tests.reference import exact_call
from tests.rounding import assert_rounded
from tests.synerdiff.models.fake_gpu import FakeGpu
from tests.waiting import VirtualTime

Call = tuple[torch.Tensor, torch.Tensor, Conditioning]


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def plain(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> UnetSide:
    return load_unet_side(tiny_models[request.param], torch.float32)


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def graphed(plain: UnetSide, gpu: FakeGpu) -> GraphedUnet:
    return GraphedUnet(replace(plain, compute=gpu))


def call(side: UnetSide, rows: int, seed: int = 0, size: int = 64) -> Call:
    draw = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows, *side.latent_shape(size, size), generator=draw)
    prompts = side.encode([f"prompt {row} of {seed}" for row in range(rows)])
    return latents, torch.arange(rows) * 10.0 + seed, side.conditioning(prompts, size, size)


@pytest.mark.parametrize(
    ("rows", "padded"), [(1, 1), (2, 2), (3, 4), (5, 6), (18, 18), (31, 32), (32, 32), (33, 40), (64, 64), (65, 72)]
)
def test_few_batch_sizes_serve_all(rows: int, padded: int) -> None:
    assert padded_rows(rows) == padded


def test_padding_wastes_at_most_a_quarter_and_keeps_the_order() -> None:
    sizes = [padded_rows(rows) for rows in range(1, 129)]
    assert sizes == sorted(sizes)
    assert all(rows <= size <= rows / (1 - 1 / 4) for rows, size in enumerate(sizes, start=1))
    assert len(set(sizes)) == 1 + 16 + 12


def test_what_the_profiler_measures_is_not_padded() -> None:
    assert [padded_rows(rows) for rows in LADDER] == list(LADDER)


def test_the_common_sizes_are_those_of_full_workers_and_bounded() -> None:
    assert common_sizes(5) == (6, 4, 2, 1)
    assert set(common_sizes(64)) == {padded_rows(rows) for rows in range(1, 65)}
    assert common_sizes(8192) == common_sizes(64)


def test_a_padded_batch_changes_no_row_beyond_rounding(plain: UnetSide, graphed: GraphedUnet) -> None:
    for rows in (5, 6, 5):  # the last one pads with what the one before has left there
        latents, timesteps, told = call(plain, rows, seed=rows)
        exact = exact_call(plain.unet, latents, timesteps, told.hidden, told.added)
        assert_rounded(graphed.prepared(latents, timesteps, told)(), exact, plain.predict(latents, timesteps, told))
    assert graphed.captures == 1


def test_a_capture_is_made_once_per_size_and_shape(plain: UnetSide, graphed: GraphedUnet, gpu: FakeGpu) -> None:
    for rows, size in ((2, 64), (2, 64), (1, 64), (2, 64), (2, 128)):
        graphed.prepared(*call(plain, rows, size=size))()
    assert gpu.asked.count("capture") == 3
    assert gpu.asked.count("replay") == 5
    assert graphed.captures == 3


def inputs_bytes(side: UnetSide, rows: int) -> int:
    latents, timesteps, told = call(side, rows)
    return sum(one.nbytes for one in (latents, timesteps, told.hidden, *(told.added or {}).values()))


def test_captures_are_bounded_by_bytes_and_those_used_last_stay(plain: UnetSide, gpu: FakeGpu) -> None:
    gpu.capture_bytes = 1 << 30
    two_small = 2 * gpu.capture_bytes + inputs_bytes(plain, 1) + inputs_bytes(plain, 2)
    graphed = GraphedUnet(replace(plain, compute=gpu), most_bytes=two_small)
    for rows in (1, 2, 1):
        graphed.prepared(*call(plain, rows))()
    assert graphed.captures == 2
    graphed.prepared(*call(plain, 4))()
    assert graphed.captures == 1, "its inputs are larger than those of the one used least recently"
    graphed.prepared(*call(plain, 4))()
    assert gpu.asked.count("capture") == 3


def test_a_capture_that_alone_holds_more_than_the_bound_is_done_without(plain: UnetSide, gpu: FakeGpu) -> None:
    graphed = GraphedUnet(replace(plain, compute=gpu), most_bytes=inputs_bytes(plain, 2))
    for _ in range(2):
        for rows in (2, 4):
            arguments = call(plain, rows)
            exact = exact_call(plain.unet, *arguments[:2], arguments[2].hidden, arguments[2].added)
            assert_rounded(graphed.prepared(*arguments)(), exact, plain.predict(*arguments))
    assert (graphed.captures, graphed.refused) == (1, 1)
    assert gpu.asked.count("capture") == 3 + 1


def test_what_it_answers_is_the_callers_own(plain: UnetSide, graphed: GraphedUnet) -> None:
    first = graphed.prepared(*call(plain, 2, seed=1))()
    kept = first.clone()
    graphed.prepared(*call(plain, 2, seed=2))()
    assert torch.equal(first, kept)


def test_a_capture_that_fails_is_said_once_and_done_without(
    plain: UnetSide, graphed: GraphedUnet, gpu: FakeGpu
) -> None:
    gpu.refusals = [RuntimeError("CUDA error: operation not permitted when stream is capturing")]
    with capture_logs() as logs:
        for _ in range(3):
            arguments = call(plain, 2)
            assert torch.equal(graphed.prepared(*arguments)(), plain.predict(*arguments))
    assert gpu.asked == ["capture"]
    (log,) = logs
    assert (log["log_level"], log["rows"]) == ("warning", 2)
    assert "stream is capturing" in log["reason"]


def test_a_capture_that_poisons_the_device_is_not_fallen_back_from(
    plain: UnetSide, graphed: GraphedUnet, gpu: FakeGpu
) -> None:
    gpu.refusals = [torch.AcceleratorError("CUDA error: an illegal memory access was encountered")]
    with pytest.raises(DeviceFailed, match="illegal memory access"):
        graphed.prepared(*call(plain, 2))()


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_memory_that_does_not_suffice_for_a_capture_is_freed_and_the_capture_made(
    plain: UnetSide, graphed: GraphedUnet, gpu: FakeGpu
) -> None:
    graphed.prepared(*call(plain, 2))()
    gpu.asked.clear()
    gpu.refusals = [NO_MEMORY]
    graphed.prepared(*call(plain, 4))()
    assert gpu.asked == ["capture", "free", "capture", "replay"]
    assert (graphed.captures, graphed.refused) == (1, 0)


def test_a_capture_that_memory_never_suffices_for_is_not_refused_for_good(
    plain: UnetSide, graphed: GraphedUnet, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphed_unet, "time", clock := VirtualTime())
    gpu.refusals = [NO_MEMORY, NO_MEMORY]
    arguments = call(plain, 2)
    for _ in range(3):
        assert torch.equal(graphed.prepared(*arguments)(), plain.predict(*arguments))
    assert gpu.asked == ["capture", "free", "capture"], "each attempt costs all other captures"
    assert graphed.refused == 0
    clock.sleep(3600)
    graphed.prepared(*arguments)()
    assert gpu.asked[3:] == ["capture", "replay"]


def test_memory_is_recognised_behind_the_error_that_a_capture_ends_with(
    plain: UnetSide, graphed: GraphedUnet, gpu: FakeGpu
) -> None:
    ended = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    ended.__context__ = NO_MEMORY
    gpu.refusals = [ended]
    graphed.prepared(*call(plain, 2))()
    assert (graphed.captures, graphed.refused) == (1, 0)


def test_without_captures_calls_are_made_as_they_come(plain: UnetSide) -> None:
    off = FakeGpu(captures=False)
    graphed = GraphedUnet(replace(plain, compute=off))
    arguments = call(plain, 3)
    assert torch.equal(graphed.prepared(*arguments)(), plain.predict(*arguments))
    assert off.asked == []


def test_freed_captures_are_made_anew(plain: UnetSide, graphed: GraphedUnet, gpu: FakeGpu) -> None:
    graphed.prepared(*call(plain, 2))()
    graphed.free()
    assert graphed.captures == 0
    graphed.prepared(*call(plain, 2))()
    assert gpu.asked.count("capture") == 2


def test_attention_is_torchs_own(plain: UnetSide) -> None:
    assert {type(processor).__name__ for processor in plain.unet.attn_processors.values()} == {"AttnProcessor2_0"}
