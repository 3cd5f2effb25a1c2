"""Probing and profiling against workers whose times are known: what comes out, what it says, and what fails."""

import asyncio
from dataclasses import replace

import pytest

from services.scheduler.profiles.measuring.findings import (
    USABLE,
    decodes_at_once,
    most_within,
    subject_of,
    with_caps,
    within_memory,
)
from services.scheduler.profiles.measuring.profiler import Profiler, ProfilerOptions
from services.scheduler.profiles.measuring.rounds import Probe, ProbeFailed, ProbeItem
from services.scheduler.profiles.store import usable
from synerdiff.errors import InvalidRequest
from synerdiff.profiles import Cell, ItemCaps, Profile, Setting, dump, parse
from tests.services.scheduler.measured_profiles import SUBJECT, profile, record, two_cores
from tests.services.scheduler.simulated import straight_line_profile
from tests.services.scheduler.timed_pair import Bench
from tests.values import CARD
from tests.waiting import HANG_S

UNET, VAE, BESIDE = Setting(1, 2, 0), Setting(1, 0, 2), Setting(1, 1, 1)


@pytest.mark.parametrize(
    ("rows", "decodes", "setting"),
    [(1, 0, Setting(1, 2, 0)), (7, 0, Setting(1, 1, 0)), (0, 3, Setting(2, 0, 2)), (5, 2, Setting(1, 1, 1))],
)
async def test_an_item_is_run_as_it_was_asked_for(rows: int, decodes: int, setting: Setting) -> None:
    bench, probe = Bench(), Probe(rows, decodes, setting)
    (run,) = await bench.prober.sweep([probe])
    assert run.probe == probe
    assert run.ms == pytest.approx(two_cores(probe), rel=1e-3)
    assert (run.unet_ms > 0, run.vae_ms > 0) == (rows > 0, decodes > 0)


async def test_a_sweep_runs_its_items_in_order_and_new_ones_by_themselves_before() -> None:
    bench = Bench()
    probes = [Probe(8, 0, UNET), Probe(0, 1, VAE), Probe(4, 2, BESIDE), Probe(2, 0, UNET)]
    runs = await bench.prober.sweep(probes)
    assert [run.probe for run in runs] == probes
    assert [run.ms for run in runs] == pytest.approx([two_cores(probe) for probe in probes], rel=1e-3)
    assert set(bench.prober.footprints) == set(probes)
    plans = bench.pair.plans
    await bench.prober.sweep(probes)
    assert bench.pair.plans == plans + 2  # one for each worker


@pytest.mark.parametrize(("ahead", "waits"), [(1, 3), (2, 0), (4, 0)])
async def test_plans_that_run_ahead_spare_a_worker_the_wait(ahead: int, waits: int) -> None:
    bench = Bench(plan_ms=5.0)
    item = ProbeItem(4, 0, UNET)
    rounds = await bench.prober.run_rounds([[item]] * 4, in_step=False, ahead=ahead)
    span_ms = (rounds[-1].end_unix_ns - rounds[0].start_unix_ns) / 1e6
    assert span_ms == pytest.approx(4 * two_cores(Probe(4, 0, UNET)) + 5 * waits, rel=1e-3)


async def test_a_profile_is_what_was_measured_with_what_follows_from_it() -> None:
    bench = Bench()
    made = await bench.profile(max_rows=16, max_decodes=4, chunks=(1, 2))
    for rows, decodes in ((2, 0), (16, 0), (9, 0), (12, 3), (16, 4)):
        expected = two_cores(Probe(rows, decodes, BESIDE if decodes else UNET))
        assert made.latency_ms(rows, decodes) == pytest.approx(expected, rel=0.1)
    assert made.knee is not None
    assert (made.knee.low, made.knee.rows, made.knee.high) == (8, 8, 8)  # in 52 ms, where 16 take 100
    assert made.subject == subject_of(bench.prober.pair.unet, bench.prober.pair.vae, 256, 256)
    assert made.mechanisms.beside
    assert not made.mechanisms.chunking
    assert {cell.setting for cell in made.cells} == {UNET, VAE, BESIDE}  # one thread alone is slower
    assert {found.choice: found.taken for found in made.evidence} == {
        "one plan at a time": True,  # this pair knows no way from one process to another
        "items in step": True,
        "side by side": True,
        "threads: UNet 1": False,
        "threads: VAE 1": False,
    }
    assert made.memory_format == "contiguous + channels_last"
    assert parse(dump(made)) == made
    assert (bench.pair.held, bench.pair.images) == ({}, set()), "the workers hold nothing afterwards"


async def test_no_more_tasks_than_there_are_slots() -> None:
    bench = Bench(slots=6)
    made = await bench.profile(max_rows=64, max_decodes=10, chunks=(1,))
    assert bench.pair.most_held <= 6
    assert made.caps.unet <= 6


async def test_tasks_that_are_through_are_replaced() -> None:
    bench = Bench()
    for _ in range(60):
        await bench.prober.sweep([Probe(4, 0, UNET)] * 5)
    assert bench.pair.admitted > 2
    assert len(bench.pair.held) == 2


async def test_workers_that_do_not_wait_for_each_other_get_an_item_a_plan() -> None:
    bench = Bench()
    bench.pair.step_free = True
    made = await bench.profile(max_rows=4, max_decodes=2, chunks=(1,))
    assert not made.mechanisms.in_step
    assert any("no pace" in note for note in made.notes)
    assert made.latency_ms(4, 2) == pytest.approx(two_cores(Probe(4, 2, BESIDE)), rel=1e-3)


async def test_a_call_that_fails_is_said_and_the_rest_can_go_on() -> None:
    bench, profiler = Bench(), Profiler(ProfilerOptions(max_rows=8, max_decodes=2, chunks=(1,)))
    bench.pair.broken = 8
    with pytest.raises(ProbeFailed, match="the UNet call failed"):
        await profiler.run(bench.prober)
    before = profiler.runs
    assert before > 0
    bench.pair.broken = 0
    bench.prober.close()
    again = Bench()
    made = await profiler.run(again.prober)
    assert sum(cell.samples for cell in made.cells) < profiler.runs  # those tried and not kept have some too
    assert profiler.runs > before
    assert made.latency_ms(8, 0) > 0


async def test_giving_way_ends_a_measurement_at_once_and_leaves_nothing() -> None:
    bench = Bench()
    await bench.prober.sweep([Probe(4, 2, BESIDE)])
    bench.pair.paused = True
    measuring = asyncio.create_task(bench.prober.sweep([Probe(4, 2, BESIDE)]))
    await asyncio.sleep(0.01)
    assert not measuring.done()
    bench.prober.give_way()
    assert bench.pair.held == {}
    with pytest.raises(ProbeFailed, match="gave way"):
        await asyncio.wait_for(measuring, HANG_S)


async def test_giving_way_takes_along_tasks_that_are_still_on_their_way() -> None:
    bench = Bench()
    measuring = asyncio.create_task(bench.prober.sweep([Probe(4, 2, BESIDE)]))
    while not bench.pair.held:
        await asyncio.sleep(0)
    bench.prober.give_way()
    assert bench.pair.held == {}
    with pytest.raises(ProbeFailed, match="gave way"):
        await asyncio.wait_for(measuring, HANG_S)
    assert bench.pair.held == {}


async def test_a_report_that_does_not_match_is_no_measurement() -> None:
    bench = Bench()
    await bench.prober.run_round([ProbeItem(4, 0, Setting())], in_step=False)
    task = next(iter(bench.pair.held.values()))
    task.spec = replace(task.spec, guidance_scale=1.0)
    with pytest.raises(ProbeFailed, match="4 UNet rows were asked for, 3 were computed"):
        await bench.prober.run_round([ProbeItem(4, 0, Setting())], in_step=False)


async def test_what_there_is_no_memory_for_is_left_out_and_said() -> None:
    bench = Bench()
    bench.pair.most_rows, bench.pair.most_decodes, bench.pair.row_bytes = 9, 3, 1000
    profile = await bench.profile(max_rows=16, max_decodes=4)
    assert max(cell.rows for cell in profile.cells) <= 9
    assert max(cell.decodes for cell in profile.cells) == 3
    assert profile.caps.rows <= 9
    assert any("no memory for 16 rows" in note for note in profile.notes)
    assert any("no memory for 4 decodes" in note for note in profile.notes)
    cell = next(cell for cell in profile.cells if cell.rows and cell.decodes)
    assert (cell.unet_bytes, cell.vae_bytes) == (cell.rows * 1000, cell.decodes * 1000)
    assert cell.peak_bytes == cell.unet_bytes + cell.vae_bytes


async def test_a_worker_without_memory_for_the_least_item_cannot_be_measured() -> None:
    bench = Bench()
    bench.pair.most_decodes = -1
    with pytest.raises(ProbeFailed, match="no memory for 1 decodes"):
        await bench.profile(max_rows=2, max_decodes=1)


# ---- findings


def grid(latency: dict[tuple[int, int], float], max_rows: int, max_decodes: int) -> Profile:
    cells = tuple(Cell(r, v, ms, ms) for (r, v), ms in latency.items())
    return Profile(SUBJECT, cells, ItemCaps(max_rows // 2, max_decodes), "now")


def test_the_cap_of_tasks_is_where_throughput_is_best() -> None:
    flat = grid({(r, 0): max(80.0, 10.0 * r) for r in range(1, 17)} | {(0, 1): 5.0}, 16, 1)
    assert with_caps(flat, slots=32).caps.unet == 4
    assert with_caps(flat, slots=3).caps.unet == 3
    overhead = grid({(r, 0): 20.0 + 10.0 * r for r in range(1, 17)} | {(0, 1): 5.0}, 16, 1)
    assert with_caps(overhead, slots=32).caps.unet == 8  # though 11 rows are within 5 % of 16
    assert with_caps(overhead, slots=32).knee_rows() == 11


def test_decodes_stop_where_they_gain_nothing() -> None:
    alone = {(8, 0): 100.0, (1, 0): 20.0, (16, 0): 200.0} | {(0, v): 10.0 * v for v in range(1, 7)}
    hidden = {(8, v): max(105.0, 35.0 * v) for v in range(1, 7)}
    assert decodes_at_once(grid(alone | hidden, 16, 6), 8) == 3
    spiking = {(8, v): 90.0 + 60.0 * v for v in range(1, 7)}
    assert decodes_at_once(grid(alone | spiking, 16, 6), 8) == 1


def test_a_subject_names_all_that_a_profile_depends_on() -> None:
    card = replace(CARD, latent_channels=4)
    unet, vae = record("unet", model_card=card), record("vae", model_card=replace(CARD, size_multiple=8))
    assert subject_of(unet, vae, 256, 256) == SUBJECT
    assert subject_of(unet, vae, 512, 256).latent_shape == (4, 32, 64)
    assert subject_of(unet, replace(vae, dtype="bfloat16"), 256, 256).dtype == "float32 + bfloat16"
    assert subject_of(unet, replace(vae, threads=1), 256, 256).shares == "2 + 1 threads"
    gpu = subject_of(replace(unet, threads=0), replace(vae, threads=0), 256, 256)
    assert gpu.shares == "as the device shares"


def test_a_profile_made_under_other_mps_shares_is_refused_with_the_reason() -> None:
    unet, vae = record("unet", threads=0, mps_thread_percent=70), record("vae", threads=0, mps_thread_percent=30)
    made = replace(profile(), subject=subject_of(unet, vae, 256, 256))
    assert made.subject.shares == "MPS 70:30"
    assert usable(made, subject_of(unet, vae, 256, 256)) is made
    for other in (60, 0):
        shares = f"MPS {other or 'none'}:30"
        with pytest.raises(InvalidRequest, match=f"shares 'MPS 70:30', not '{shares}'"):
            usable(made, subject_of(replace(unet, mps_thread_percent=other), vae, 256, 256))


GIB = 2**30


def limit(usable_bytes: float) -> int:
    return round(usable_bytes / USABLE) + 1


@pytest.mark.parametrize(
    ("held", "usable", "most"),
    [
        ([(2, 4), (8, 10)], 7, 5),  # in between
        ([(2, 4), (8, 10)], 10, 8),
        ([(2, 4), (8, 10)], 14, 12),  # beyond, with the last slope
        ([(2, 4), (4, 5), (8, 13)], 15, 9),
        ([(2, 4), (2, 6), (8, 12)], 6, 2),  # of two settings the one that takes more
        ([(4, 8)], 6, 3),  # in proportion to the only one
        ([(2, 4), (8, 10)], 1, 1),  # it does not even fit: the least there is is tried
        ([(0, 5), (2, 0)], 9, 0),  # nothing is known
    ],
)
def test_the_most_that_fits(held: list[tuple[int, int]], usable: float, most: int) -> None:
    assert most_within([(count, size * GIB) for count, size in held], limit(usable * GIB)) == most


def test_no_limit_bounds_nothing() -> None:
    assert most_within([(2, GIB)], 0) == 0


def measured(unet_bytes: int, vae_bytes: int) -> Profile:
    """A profile whose workers hold a GiB, and so much more per row and per decode."""
    profile = straight_line_profile(caps=ItemCaps(8, 4))
    return profile.with_cells(
        replace(
            cell,
            unet_bytes=GIB + cell.rows * unet_bytes if cell.rows else 0,
            vae_bytes=GIB + cell.decodes * vae_bytes if cell.decodes else 0,
        )
        for cell in profile.cells
    )


def test_caps_keep_each_worker_within_its_own_limit() -> None:
    profile = measured(GIB, 2 * GIB)
    unet, vae = record("unet", memory_limit_bytes=limit(8 * GIB)), record("vae", memory_limit_bytes=limit(5 * GIB))
    limited = within_memory(profile, unet, vae)
    assert limited.caps == ItemCaps(3, 2)
    held = [cell.unet_bytes for cell in limited.cells if cell.rows <= limited.caps.rows]
    assert max(held) <= USABLE * unet.memory_limit_bytes
    assert within_memory(profile, unet, record("vae")).caps == ItemCaps(3, 4)
    roomy = record("unet", memory_limit_bytes=100 * GIB), record("vae", memory_limit_bytes=100 * GIB)
    assert within_memory(profile, *roomy) is profile
    assert parse(dump(profile)) == profile
