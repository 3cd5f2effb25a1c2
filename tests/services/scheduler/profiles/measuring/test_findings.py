"""What a profile says of a device, on latencies that are known."""

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
from services.scheduler.profiles.store import usable
from synerdiff.errors import InvalidRequest
from synerdiff.profiles import Cell, ItemCaps, Profile, Setting, dump, parse
from tests.services.scheduler.measured_profiles import SUBJECT, profile, record
from tests.services.scheduler.simulated import straight_line_profile
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
