"""The shipped profiles of the paper's table hold what it gives, and what follows from that (docs/simulation.md)."""

import pytest

from synerdiff.profiles import Profile
from tests.services.scheduler.simulated import PAPER, PAPER_SERIAL

GIVEN_MS = {(2, 1): 46.3, (4, 0): 44.2, (4, 2): 87.4, (6, 2): 99.4, (16, 6): 262.6}  # by rows and decodes


@pytest.mark.parametrize("profile", [PAPER, PAPER_SERIAL], ids=["paper-table", "paper-table-serial"])
def test_every_number_the_paper_gives_is_there_as_given_and_the_rest_fits(profile: Profile) -> None:
    assert {(c.rows, c.decodes): c.median_ms for c in profile.cells if c.origin == "given"} == GIVEN_MS
    assert {c.origin for c in profile.cells if not c.rows} == {"assumed"}
    for rows, unet_ms in ((2, 24.7), (4, 44.2), (6, 56.2), (16, 133.0)):
        for decodes in (0, 1, 2, 3, 6):
            assert profile.latency_ms(rows, decodes) == pytest.approx(unet_ms + 21.6 * decodes)
    assert profile.latency_ms(5, 2) == pytest.approx((44.2 + 56.2) / 2 + 43.2)


def test_a_decode_alone_is_what_the_two_differ_in() -> None:
    assert PAPER.latency_ms(0, 2) == pytest.approx(1.3 * 43.2)
    assert PAPER_SERIAL.latency_ms(0, 2) == pytest.approx(43.2)
