"""The ring of ticks."""

from dataclasses import replace

import pytest

from services.scheduler.engine.ticks import Pairing, TickLog
from tests.services.scheduler.reports import planned, record, timing


def test_a_domain_can_be_asked_for() -> None:
    log = TickLog()
    for domain in ("a", "b"):
        log.add(record("unet", 1, (planned(1, 2), timing(0, 1, 2)), domain=domain))
    assert [r.domain for r in log.records("b")] == ["b"]
    assert len(log.records()) == 2


def test_what_came_since_is_given_as_far_as_it_is_kept() -> None:
    log = TickLog(kept=3)
    for tick in range(5):
        log.add(record("unet", tick, (planned(1, 2), timing(0, 1, 2))))
    assert log.added == 5
    assert [r.tick for r in log.records()] == [2, 3, 4]
    assert [r.tick for r in log.since(4)] == [4]
    assert [r.tick for r in log.since(0)] == [2, 3, 4]
    assert log.since(5) == []


def test_an_item_lasts_from_its_first_side_to_its_last_whichever_reports_first() -> None:
    both = planned(2, 4, 1.0, predicted_ms=40.0)
    unet = record("unet", 7, (planned(1, 2), timing(0, 9, 2)), (both, timing(10, 50, 4, waited_ms=1.0)))
    vae = record("vae", 7, (both, timing(12, 70, 1, waited_ms=3.0)))
    for first, second in ((unet, vae), (vae, unet)):
        pairing = Pairing()
        items = {m.planned.place: m for r in (first, second) for m in pairing.add(r)}
        assert (items[1].kind, items[1].ms, items[1].ratio) == ("unet", 9.0, 0.9)
        assert (items[2].kind, items[2].ms, items[2].ratio, items[2].waited_ms) == ("beside", 60.0, 1.5, 3.0)
        assert items[2].unet is not None
        assert items[2].vae is not None
        assert (items[2].unet.ms, items[2].vae.ms) == (40.0, 58.0)


def test_ticks_and_domains_are_not_mixed_up() -> None:
    pairing = Pairing()
    both = planned(1, 4, 1.0)
    pairing.add(record("unet", 1, (both, timing(0, 10, 4))))
    assert pairing.add(record("vae", 2, (both, timing(0, 10, 1)))) == []
    assert pairing.add(record("vae", 1, (both, timing(0, 10, 1)), domain="other")) == []
    assert len(pairing.add(record("vae", 1, (both, timing(0, 10, 1))))) == 1


def test_a_half_whose_other_half_is_lost_is_dropped_in_the_end() -> None:
    pairing = Pairing(kept=3)
    both = planned(1, 4, 1.0)
    for tick in range(1, 6):
        pairing.add(record("unet", tick, (both, timing(0, 10, 4))))
    whole = [len(pairing.add(record("vae", tick, (both, timing(0, 10, 1))))) for tick in (5, 4, 3, 2, 1)]
    assert whole == [1, 1, 1, 0, 0]


def test_a_report_that_does_not_match_its_plan_measures_nothing() -> None:
    pairing = Pairing()
    one = record("unet", 1, (planned(1, 2), timing(0, 10, 2)))
    assert pairing.add(replace(one, planned=None)) == []
    assert pairing.add(replace(one, items=one.items * 2)) == []


@pytest.mark.parametrize(
    "measured",
    [
        record("unet", 1, (planned(1, 2), timing(0, 10, 2)), in_step=False),
        record("unet", 1, (planned(1, 2), timing(0, 10, 2)), stale=1),
        record("unet", 1, (planned(1, 2), timing(0, 10, 1))),
        record("unet", 1, (planned(1, 2, predicted_ms=0.0), timing(0, 10, 2))),
    ],
    ids=["running free", "an entry was stale", "fewer rows than planned", "nothing was predicted"],
)
def test_only_items_that_ran_as_planned_are_compared(measured: object) -> None:
    (item,) = Pairing().add(measured)  # type: ignore[arg-type]
    assert item.ratio is None


def test_one_stale_side_spoils_the_item_and_not_the_other_items() -> None:
    pairing = Pairing()
    both, alone = planned(1, 4, 1.0), planned(2, 2)
    pairing.add(record("vae", 1, (both, timing(0, 10, 1)), stale=1))
    first, second = pairing.add(record("unet", 1, (both, timing(0, 10, 4)), (alone, timing(10, 20, 2))))
    assert first.ratio is None
    assert second.ratio == 1.0
