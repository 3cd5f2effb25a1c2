"""The shipped profiles of the paper's table are what the script makes, and say where each number is from."""

import pytest

from bench.paper_profiles import FOLDER, GIVEN_MS, PROFILES
from synerdiff.profiles import dump, load


@pytest.mark.parametrize("name", PROFILES)
def test_the_files_are_what_the_script_writes(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == dump(PROFILES[name])


@pytest.mark.parametrize("name", PROFILES)
def test_every_number_the_paper_gives_is_there_as_given_and_the_rest_fits(name: str) -> None:
    profile = load(FOLDER / f"{name}.json")
    given = {(c.rows, c.decodes): c.median_ms for c in profile.cells if c.origin == "given"}
    assert given == GIVEN_MS
    assert {c.origin for c in profile.cells if not c.rows} == {"assumed"}
    for rows, unet_ms in ((2, 24.7), (4, 44.2), (6, 56.2), (16, 133.0)):
        for decodes in (0, 1, 2, 3, 6):
            assert profile.latency_ms(rows, decodes) == pytest.approx(unet_ms + 21.6 * decodes)
    assert profile.latency_ms(5, 2) == pytest.approx((44.2 + 56.2) / 2 + 43.2)


def test_a_decode_alone_is_what_the_two_differ_in() -> None:
    alone = {name: profile.latency_ms(0, 2) for name, profile in PROFILES.items()}
    assert alone == {"paper-table": pytest.approx(1.3 * 43.2), "paper-table-serial": pytest.approx(43.2)}
