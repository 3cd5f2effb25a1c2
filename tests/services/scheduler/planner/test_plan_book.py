"""The memo of plans: what it finds, what it misses, what it forgets."""

from pathlib import Path

import pytest

from services.scheduler.planner.plan_book import PlanBook, snapped
from services.scheduler.planner.planned_round import PlanQuery
from services.scheduler.planner.planner import plan_round
from synerdiff.profiles import Profile, load

PROFILES = Path(__file__).parents[4] / "bench" / "profiles"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load(PROFILES / "paper-table.json")


@pytest.mark.parametrize(
    ("threshold", "cell"), [(1.0, 1.0), (0.98, 0.98), (0.97, 0.98), (0.981, 1.0), (0.9800000001, 0.98), (0.011, 0.02)]
)
def test_a_threshold_is_snapped_to_the_next_cell_up(threshold: float, cell: float) -> None:
    assert snapped(threshold) == cell


def test_a_plan_is_missing_until_it_is_added(profile: Profile) -> None:
    book = PlanBook()
    asked, missing = PlanQuery(3, 2, threshold=0.95), PlanQuery(3, 2, threshold=0.96)
    assert book.lookup(profile, asked) is None
    assert book.lookup(profile, asked._replace(threshold=0.957)) is None
    assert book.take_missing() == [(profile, missing)]
    assert book.take_missing() == []
    planned = plan_round(profile, missing)
    book.add(profile.digest, missing, planned)
    assert book.lookup(profile, asked) is planned
    assert book.take_missing() == []


def test_a_plan_that_came_meanwhile_is_missing_no_more(profile: Profile) -> None:
    book, query = PlanBook(), PlanQuery(1, 1)
    book.lookup(profile, query)
    book.add(profile.digest, query, plan_round(profile, query))
    assert book.take_missing() == []


def test_a_plan_holds_for_its_profile_alone(profile: Profile) -> None:
    book = PlanBook(solve_now=True)
    book.lookup(profile, PlanQuery(3, 2))
    other = load(PROFILES / "paper-table-serial.json")
    assert book.lookup(other, PlanQuery(3, 2)) == plan_round(other, PlanQuery(3, 2))
    assert len(book) == 2


def test_solving_now_misses_nothing_and_keeps_to_the_threshold_asked_for(profile: Profile) -> None:
    book = PlanBook(solve_now=True)
    planned = book.lookup(profile, PlanQuery(8, 6, threshold=0.949))
    assert planned is not None
    assert planned.total_ms <= planned.fastest_ms / 0.949
    assert book.take_missing() == []


def test_the_least_used_go_first(profile: Profile) -> None:
    book = PlanBook(capacity=2)
    planned = plan_round(profile, PlanQuery(1, 0))
    for unet in (1, 2):
        book.add(profile.digest, PlanQuery(unet, 0), planned)
    book.lookup(profile, PlanQuery(1, 0))
    book.add(profile.digest, PlanQuery(3, 0), planned)
    assert [book.lookup(profile, PlanQuery(unet, 0)) is None for unet in (1, 2, 3)] == [False, True, False]
    for unet in (5, 6, 7):
        book.lookup(profile, PlanQuery(unet, 0))
    assert [query.unet for _, query in book.take_missing()] == [6, 7]
