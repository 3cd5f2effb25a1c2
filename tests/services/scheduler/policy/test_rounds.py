"""Rounds as items: the planner's counts filled with tasks and decodes."""

from services.scheduler.planner.planned_round import PlannedItem, PlannedRound
from services.scheduler.policy.rounds import Work, decodes_first, filled
from services.scheduler.policy.running_set import Seat
from services.scheduler.policy.skip_policy import Stance, Standing
from services.scheduler.policy.snapshots import DecodePart, Item
from synerdiff.profiles import ItemCaps, Setting
from tests.services.scheduler.simulated import straight_line_profile
from tests.services.scheduler.snapshot_values import decode, running

WIDE, CHOICE, LATE = Standing(Stance.GUIDED), Standing(Stance.CHOICE, 0.5, 1.0), Standing(Stance.CHOICE, 0.5, 2.0)
UNGUIDED = Seat(running("unguided", rows=1), Standing(Stance.ONE_ROW))
SEATS = (Seat(running("a"), CHOICE), Seat(running("b"), WIDE), UNGUIDED, Seat(running("c"), LATE))
WORK = Work("u", "v", SEATS, (decode("x"), decode("y")), skips=2)


def planned(*items: PlannedItem) -> PlannedRound:
    skips = sum(item.skips for item in items)
    return PlannedRound(items, sum(item.ms for item in items), 0.0, skips, 0.0, 0.0, True)


def stepped(items: list[Item]) -> list[tuple[str, ...]]:
    return [item.unet.task_ids if item.unet else () for item in items]


def test_tasks_fill_the_counts_in_order_and_skip_where_the_items_say() -> None:
    items = filled(
        planned(
            PlannedItem(2, 0, 4, 1, 0, 1, 30.0, Setting(1, 2, 1)), PlannedItem(2, 2, 2, 1, 1, 2, 20.0, Setting(1, 1, 1))
        ),
        WORK,
    )
    assert stepped(items) == [("a/0", "b/0"), ("unguided/0", "c/0")], "of the two with a choice, most credit skips"
    assert [item.unet.skipping for item in items if item.unet] == [frozenset(), {"c/0"}]
    assert [(item.unet.threads, item.vae.threads) for item in items if item.unet and item.vae] == [(2, 1), (1, 1)]
    assert [item.predicted_ms for item in items] == [30.0, 20.0]


def test_units_become_the_bands_of_each_decode() -> None:
    items = filled(
        planned(
            PlannedItem(0, 0, 0, 3, 0, 2, 1.0, Setting(3)),
            PlannedItem(4, 1, 7, 3, 2, 5, 1.0, Setting(3)),
            PlannedItem(0, 0, 0, 3, 5, 6, 1.0, Setting(3)),
        ),
        WORK,
    )
    assert [item.vae.parts for item in items if item.vae] == [
        (DecodePart("x/0", 3, 0, 2),),
        (DecodePart("x/0", 3, 2, 3), DecodePart("y/0", 3, 0, 2)),
        (DecodePart("y/0", 3, 2, 3),),
    ]
    assert stepped(items) == [(), ("unguided/0", "a/0", "b/0", "c/0"), ()]


def test_decodes_first_keeps_to_the_caps_and_says_how_long_it_takes() -> None:
    profile = straight_line_profile(caps=ItemCaps(3, 1))
    items = decodes_first(WORK, profile, profile.caps)
    assert [len(item.vae.parts) for item in items if item.vae] == [1, 1]
    assert stepped(items)[2:] == [("a/0", "b/0", "unguided/0"), ("c/0",)]
    assert [item.unet.skipping for item in items if item.unet] == [{"a/0"}, {"c/0"}]
    assert [item.predicted_ms for item in items] == [20.0, 20.0, 10.0 + 4 * 5.0, 10.0 + 5.0]
