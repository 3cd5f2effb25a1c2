"""Items that keep within their workers' memory, by what the cells of a profile held."""

from dataclasses import replace

import pytest

from services.scheduler.profiles.measuring.memory_plan import USABLE, most_within, within_memory
from synerdiff.profiles import ItemCaps, Profile, dump, parse
from tests.services.scheduler.measured_profiles import record
from tests.services.scheduler.simulated import straight_line_profile

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
