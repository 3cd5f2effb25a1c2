"""What a profile says of a device, on latencies that are known."""

from dataclasses import replace

import pytest

from services.scheduler.profiles.measuring.findings import decodes_at_once, subject_of, with_caps
from services.scheduler.profiles.store import usable
from synerdiff.errors import InvalidRequest
from synerdiff.profiles import Cell, ItemCaps, Profile, Setting
from tests.services.scheduler.measured_profiles import SUBJECT, profile, record
from tests.values import CARD


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


def test_settings_say_the_threads_of_the_sides_that_have_a_part() -> None:
    measured = profile()
    assert {cell.setting for cell in measured.cells if not cell.decodes} == {Setting(1, 2, 0), Setting(1, 1, 0)}
    assert {cell.setting for cell in measured.cells if cell.rows and cell.decodes} == {Setting(1, 1, 1)}
