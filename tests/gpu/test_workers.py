"""The CUDA path of the workers on a real GPU. Never been run on one: expect the tests to need a repair or two at first.

With the bundled model, or the one in SYNERDIFF_GPU_TEST_MODEL (a directory in diffusers' layout).
"""

import itertools
import os
import queue
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.residents import Residents
from services.unet_worker.step_loop import StepLoop
from services.vae_worker.decoder import BatchDecoder, Picture
from synerdiff.latents.arena import Arena
from synerdiff.latents.client import Latents
from synerdiff.latents.memory import ProcessMemory
from synerdiff.models.compiled.components import CompiledUnet
from synerdiff.models.device import Device, DeviceFailed, DeviceOptions, Fault, fault_of, open_device
from synerdiff.models.device.opening import dtype_name
from synerdiff.models.graphed_unet import common_sizes
from synerdiff.models.loading import load_unet_side, load_vae_side
from synerdiff.models.threads import ThreadShare
from synerdiff.pace import Pacer, PaceSide
from synerdiff.plans import UnetEntry, UnetItem, UnetPlan
from synerdiff.worker.device_thread import DeviceThread
from tests.tiny_models import EMOJI_MODEL
from tests.values import spec
from tests.waiting import HANG_S

MODEL = Path(os.environ.get("SYNERDIFF_GPU_TEST_MODEL", EMOJI_MODEL))
STEPS = 10
TASKS = 5  # ten rows, padded to twelve
LEAST_PSNR_DB = 30.0  # of a float16 picture against a float32 one of the CPU: other rounding, the same picture


@pytest.fixture(scope="module")
def device(cuda: Any) -> Device:
    return open_device("cuda")


def specs(side: Any, count: int = TASKS) -> list[Any]:
    width, height = side.native_size
    fields = {"width": width, "height": height, "num_inference_steps": STEPS}
    return [spec(f"a/{seed}", seed=seed, guidance_scale=5.0, **fields) for seed in range(count)]


def denoised(device: Device, dtype: Any, count: int = TASKS) -> Any:
    """Finished latents [count, C, h, w] of tasks stepped in one batch, on the CPU in fp32; one wait, at the end."""
    side = load_unet_side(MODEL, dtype, device=device)
    unet = CompiledUnet(side)
    denoiser = Denoiser(side, unet)
    tasks = [prepared.task for prepared in TaskPreparer(side).prepare(specs(side, count))]
    timeline = device.timeline()
    begin = timeline.mark()
    while not tasks[0].done:
        denoiser.step(tasks)
    end = timeline.mark()
    ms = (timeline.unix_ns(end) - timeline.unix_ns(begin)) / 1e6
    assert (unet.graphed.captures, unet.graphed.refused) == (int(device.captures), 0)
    print(f"{dtype_name(dtype)} on {device.name}, graphs {device.captures}: {ms / tasks[0].num_calls:.2f} ms a call")
    return torch.stack([device.download(task.sample).float() for task in tasks])


def stored(latents: Any, dtype: Any) -> list[Latents]:
    """Latents as a UNet worker leaves them."""
    files = (bytearray(one.to(dtype).contiguous().view(-1).numpy().tobytes()) for one in latents)
    return [Latents(memoryview(file), dtype_name(dtype)) for file in files]


def decoded(device: Device, dtype: Any, latents: Any) -> list[Any]:
    """Pictures [H, W, 3] of latents, in one batch."""
    side = load_vae_side(MODEL, dtype, safety_checker=False, device=device)
    height, width = (size * side.scale_factor for size in latents.shape[-2:])
    outcomes = BatchDecoder(side).decode(stored(latents, dtype), width, height)
    return [outcome.pixels for outcome in outcomes if isinstance(outcome, Picture)]


def psnr_db(picture: Any, reference: Any) -> float:
    error = np.square(picture.astype(float) - reference.astype(float)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def test_a_graph_computes_what_the_calls_it_was_captured_from_compute(device: Device) -> None:
    eager = open_device("cuda", DeviceOptions(cuda_graphs=False))
    by_graph, by_calls = denoised(device, torch.float16), denoised(eager, torch.float16)
    off = (by_graph - by_calls).abs().max().item() / by_calls.abs().max().item()
    print(f"a graph with two padding rows is off by {off:.2e} of the largest value")
    assert off < 0.05, "padding may change rounding, and nothing else"


def test_graphs_are_captured_again_after_all_were_dropped(device: Device, cuda: Any) -> None:
    side = load_unet_side(MODEL, cuda.float16, device=device)
    unet = CompiledUnet(side)
    denoiser = Denoiser(side, unet)
    tasks = [prepared.task for prepared in TaskPreparer(side).prepare(specs(side))]
    for _ in range(3):
        denoiser.step(tasks)
        denoiser.step(tasks[:1])
        assert (unet.graphed.captures, unet.graphed.refused) == (2, 0)
        denoiser.free_memory()
        assert unet.graphed.captures == 0
    assert cuda.cuda.current_stream() == cuda.cuda.default_stream()


def test_no_step_pays_for_a_capture_that_was_made_ahead(device: Device, cuda: Any) -> None:
    side = load_unet_side(MODEL, cuda.float16, device=device)
    unet = CompiledUnet(side)
    began = time.perf_counter()
    unet.capture_ahead(2 * TASKS)
    ahead = unet.graphed.captures
    seconds, held_mib = time.perf_counter() - began, device.captured_bytes() / 2**20
    print(f"captured {ahead} sizes in {seconds:.1f} s; they hold {held_mib:.0f} MiB")
    assert ahead == len(common_sizes(2 * TASKS))
    denoiser = Denoiser(side, unet)
    tasks = [prepared.task for prepared in TaskPreparer(side).prepare(specs(side))]
    for count in range(1, TASKS + 1):
        denoiser.step(tasks[:count])
    assert (unet.graphed.captures, unet.graphed.refused) == (ahead, 0)


def test_a_graph_that_is_dropped_takes_no_memory_from_the_others(device: Device, cuda: Any) -> None:
    """cuBLAS writes to a workspace in every replay: one that went with another graph would be somebody else's."""
    left = cuda.randn(1024, 1024, device=device.torch_device, dtype=cuda.float16)
    wanted = (left @ left).clone()
    dropped, kept = device.capture(lambda: left @ left), device.capture(lambda: left @ left)
    dropped.replay()
    del dropped
    device.free_caches()
    others = [cuda.zeros(1 << 20, device=device.torch_device) for _ in range(64)]
    for _ in range(10):
        kept.replay()
    cuda.testing.assert_close(kept.output, wanted)
    assert not any(other.any() for other in others), "a replay wrote where another tensor lies"


def test_a_capture_that_breaks_half_way_leaves_stream_and_cache_as_they_were(device: Device, cuda: Any) -> None:
    one = cuda.ones(1, device=device.torch_device)

    def waiting() -> Any:
        return one * one.item()  # waits for the device, which a capture forbids

    with pytest.raises(RuntimeError):
        device.capture(waiting)
    assert cuda.cuda.current_stream() == cuda.cuda.default_stream()
    device.free_caches()
    captured = device.capture(lambda: one + one)
    captured.replay()
    assert float(captured.output) == 2


def test_a_copy_is_complete_once_a_later_mark_has_passed(device: Device, cuda: Any) -> None:
    timeline = device.timeline()
    there = cuda.randn(4096, 4096, device=device.torch_device)
    for _ in range(20):
        there = cuda.tanh(there @ there)
    here = device.begin_download(there)
    timeline.wait(timeline.mark())
    assert cuda.equal(here, there.cpu())


def test_moments_are_told_in_their_order_by_this_hosts_clock(device: Device, cuda: Any) -> None:
    timeline = device.timeline()
    work = cuda.randn(4096, 4096, device=device.torch_device)
    last_ns = time.time_ns()
    for _ in range(20):
        start = timeline.mark()
        work = cuda.tanh(work @ work)
        end = timeline.mark()
        timeline.wait(end)
        now_ns = time.time_ns()
        start_ns, end_ns = timeline.unix_ns(start), timeline.unix_ns(end)
        assert last_ns - 1_000_000 < start_ns < end_ns <= now_ns
        last_ns = end_ns


def test_plans_run_one_behind_the_other_and_are_reported_in_order(device: Device, cuda: Any, tmp_path: Path) -> None:
    side = load_unet_side(MODEL, cuda.float16, device=device)
    unet = CompiledUnet(side)
    unet.capture_ahead(2)
    channels, height, width = side.latent_shape(*side.native_size)
    residents = Residents(Arena(1, channels * height * width * 2, "float16", ProcessMemory()), cuda.float16)
    [wanted] = specs(side, 1)
    resident = residents.admit(wanted)
    residents.make_ready(resident, TaskPreparer(side).prepare([wanted])[0].task)
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    crashed: list[Exception] = []
    thread = DeviceThread(device, Pacer(PaceSide.UNET, tmp_path), ThreadShare(1), crashed.append)
    loop = StepLoop(Denoiser(side, unet), residents, None, thread)  # type: ignore[arg-type]
    thread.start()
    try:
        for call in range(STEPS):
            plan = UnetPlan(1, call + 1, (UnetItem((UnetEntry(wanted.task_id, call),)),))
            loop.submit(plan, reports.put)
        told = [reports.get(timeout=HANG_S) for _ in range(STEPS)]
    finally:
        thread.close()
    assert not crashed
    assert [report.tick for report in told] == list(range(1, STEPS + 1))
    assert [bool(report.finished) for report in told] == [False] * (STEPS - 1) + [True]
    timings = [report.items[0] for report in told]
    gaps_ms = [(after.start_unix_ns - before.end_unix_ns) / 1e6 for before, after in itertools.pairwise(timings)]
    print(f"items of {np.median([one.ms for one in timings]):.2f} ms, {np.median(gaps_ms):.2f} ms between them")


def test_prompts_encoded_together_are_those_encoded_alone(device: Device, cuda: Any) -> None:
    side = load_unet_side(MODEL, cuda.float32, device=device)
    prompts = ["a slice of pizza", "a dog", "", "a red apple"]
    for together, prompt in zip(side.encode(prompts), prompts, strict=True):
        [alone] = side.encode([prompt])
        cuda.testing.assert_close(together.hidden, alone.hidden, rtol=1e-3, atol=1e-3)


def test_float16_pictures_are_those_of_the_cpu(device: Device) -> None:
    reference = decoded(open_device("cpu"), torch.float32, denoised(open_device("cpu"), torch.float32, 2))
    pictures = decoded(device, torch.float16, denoised(device, torch.float16, 2))
    found = [psnr_db(picture, other) for picture, other in zip(pictures, reference, strict=True)]
    print("PSNR against float32 on the CPU, dB:", [round(db, 1) for db in found])
    assert min(found) > LEAST_PSNR_DB


def test_decoding_in_bands_is_decoding(device: Device) -> None:
    side = load_vae_side(MODEL, torch.float16, safety_checker=False, device=device)
    latents = torch.randn(2, *side.latent_shape(256, 256), generator=torch.Generator().manual_seed(0))
    halves = stored(latents, torch.float16)
    decoder = BatchDecoder(side)
    whole = decoder.decode(halves, 256, 256)
    progress = decoder.begin(halves, 256, 256, bands=4)
    while not progress.advance(1.0):
        pass
    for one, other in zip(progress.outcomes(), whole, strict=True):
        assert isinstance(one, Picture)
        assert isinstance(other, Picture)
        assert psnr_db(one.pixels, other.pixels) > 40


def test_memory_that_does_not_suffice_is_recognised_and_the_device_lives_on(device: Device, cuda: Any) -> None:
    with pytest.raises(Exception) as caught:
        cuda.empty(1 << 60, dtype=cuda.uint8, device=device.torch_device)
    assert fault_of(caught.value) is Fault.OUT_OF_MEMORY
    device.free_caches()
    assert float(cuda.ones(1, device=device.torch_device)) == 1


def test_a_batch_that_does_not_fit_is_decoded_in_halves(device: Device, cuda: Any) -> None:
    """A cap on the allocator stands for a small GPU: it is set below what the batch took at its highest."""
    side = load_vae_side(MODEL, cuda.float16, safety_checker=False, device=device)
    latents = cuda.randn(8, *side.latent_shape(512, 512))
    halves = stored(latents, torch.float16)
    decoder = BatchDecoder(side)
    decoder.decode(halves[:1], 512, 512)
    rest = cuda.cuda.memory_allocated()
    device.restart_peak()
    decoder.decode(halves, 512, 512)
    needed = device.peak_bytes()
    device.free_caches()
    total = cuda.cuda.get_device_properties(device.torch_device).total_memory
    cuda.cuda.set_per_process_memory_fraction((rest + (needed - rest) * 0.6) / total)
    try:
        progress = decoder.begin(halves, 512, 512, bands=1)
        assert progress.advance(1.0)
        assert all(isinstance(outcome, Picture) for outcome in progress.outcomes())
        assert 0 < progress.take_halved() <= 8
    finally:
        cuda.cuda.set_per_process_memory_fraction(1.0)


def test_the_memory_of_a_full_batch_is_counted_and_grows_with_it(device: Device) -> None:
    side = load_unet_side(MODEL, torch.float16, device=open_device("cuda", DeviceOptions(cuda_graphs=False)))
    held = []
    for count in (1, 8, 16):
        tasks = [prepared.task for prepared in TaskPreparer(side).prepare(specs(side, count))]
        device.free_caches()
        device.restart_peak()
        Denoiser(side).step(tasks)
        torch.cuda.synchronize()
        held.append(device.peak_bytes())
    print("bytes held at most with 2, 16 and 32 rows:", held)
    assert 0 < held[0] < held[1] < held[2] <= device.memory_limit_bytes()


def test_a_poisoned_context_is_recognised(device: Device) -> None:
    """In a process of its own, since nothing else runs in one whose context is poisoned."""
    script = (
        "import torch\n"
        "from synerdiff.models.device import Fault, fault_of\n"
        "try:\n"
        "    torch.zeros(4, device='cuda')[torch.tensor([99], device='cuda')].cpu()\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, getattr(error, 'error_code', None), str(error).splitlines()[0])\n"
        "    assert fault_of(error) is Fault.FATAL\n"
        "else:\n"
        "    raise SystemExit('no error')\n"
        "import os; os._exit(0)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    print(found.stdout)
    assert found.returncode == 0, found.stderr[-2000:]


def test_zeros_tell_a_living_device_from_a_dead_one(device: Device) -> None:
    denoiser = Denoiser(load_unet_side(MODEL, torch.float16, device=device))
    try:
        denoiser.check_device()
    except DeviceFailed as failure:
        pytest.fail(str(failure))
