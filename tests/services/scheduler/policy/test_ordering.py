"""Orders: who goes first, and that nobody waits for ever."""

from services.scheduler.policy.ordering import UrgencyOrder, decodes_in_order, ordered
from services.scheduler.policy.pace import Pace
from services.scheduler.policy.policy_spec import Urgency
from services.scheduler.policy.snapshots import RunningTask
from tests.services.scheduler.snapshot_values import KEY, OTHER_KEY, decode, running

PACE = Pace(rows=4, call_ms=10.0, least_call_ms=6.0, decode_ms=0.0)
PACES = {KEY: PACE}


def by_urgency(*tasks: RunningTask, now_ms: int = 0) -> list[str]:
    return [task.claim.job_id for task in ordered(tasks, "urgency", PACES, now_ms, Urgency())]


def test_fifo_lets_those_under_way_go_on_whatever_comes() -> None:
    tasks = [
        running("late", accepted_ms=9),
        running("high", accepted_ms=9, priority=1),
        running("begun", accepted_ms=5, at=1, priority=3),
        running("early", accepted_ms=3),
    ]
    assert [t.claim.job_id for t in ordered(tasks, "fifo", PACES, 10, Urgency())] == ["begun", "high", "early", "late"]


def test_the_least_work_left_goes_first_within_a_priority_class() -> None:
    assert by_urgency(
        running("long", of=50, at=10),
        running("short", of=8),
        running("nearly", of=50, at=45),
        running("high", priority=1),
    ) == ["high", "nearly", "short", "long"]


def test_all_images_of_a_request_are_its_work() -> None:
    many = [running("many", of=10, image=image) for image in range(3)]
    assert by_urgency(*many, running("one", of=20)) == ["one", "many", "many", "many"]


def test_of_equals_the_one_that_has_begun_goes_on_then_the_oldest() -> None:
    assert by_urgency(
        running("new", of=10, accepted_ms=1), running("old", of=10), running("begun", of=12, at=2, accepted_ms=5)
    ) == ["begun", "old", "new"]


def test_a_task_out_of_slack_goes_before_shorter_ones() -> None:
    # In order of acceptance it would have taken 500 ms; twice that is its bound, and 500 ms it still takes alone.
    long = running("long", of=50, first_come_ms=500, tail_ms=2000)
    short = running("short", of=8, accepted_ms=450, first_come_ms=2000, tail_ms=2000)
    assert by_urgency(long, short, now_ms=300) == ["short", "long"]
    assert by_urgency(long, short, now_ms=490) == ["long", "short"]


def test_nobody_waits_longer_than_the_tail_but_who_would_have_in_order_of_acceptance() -> None:
    short = running("short", of=8, first_come_ms=5000, tail_ms=700)
    for first_come_ms, pressed_at_ms in ((500, 200), (1200, 700)):
        long = running("long", of=50, first_come_ms=first_come_ms, tail_ms=700)
        assert by_urgency(long, short, now_ms=pressed_at_ms - 150) == ["short", "long"]
        assert by_urgency(long, short, now_ms=pressed_at_ms) == ["long", "short"]


def test_those_who_have_to_end_before_a_pressed_one_go_before_it() -> None:
    """Alone, the last of them would keep its bound; behind the others it cannot, so they may not be late either."""
    queue = [running(f"long{k}", of=50, first_come_ms=900 + k, tail_ms=2000) for k in range(6)]
    short = running("short", of=8, first_come_ms=5000, tail_ms=2000)
    assert by_urgency(short, queue[-1], now_ms=300)[0] == "short"
    assert by_urgency(short, *queue, now_ms=300)[-1] == "short"


def test_a_higher_class_leaves_less_time_for_a_lower_one() -> None:
    low = [running(name, of=50, priority=3, first_come_ms=500, tail_ms=1000) for name in ("low",)]
    short = running("short", of=8, priority=3, first_come_ms=5000, tail_ms=1000)
    high = [running(f"high{k}", of=50, priority=1, first_come_ms=500, tail_ms=1000) for k in range(2)]
    assert by_urgency(*low, short, now_ms=250) == ["short", "low"]
    assert by_urgency(*low, short, *high, now_ms=250) == ["high0", "high1", "low", "short"]


def test_work_takes_less_time_on_more_workers() -> None:
    queue = [running(f"long{k}", of=50, first_come_ms=900 + k, tail_ms=2000) for k in range(6)]
    short = running("short", of=8, first_come_ms=5000, tail_ms=2000)
    tasks = [short, *queue]
    assert UrgencyOrder(tasks, PACES, 300, Urgency(), workers=1).sorted(tasks)[-1] is short
    assert UrgencyOrder(tasks, PACES, 300, Urgency(), workers=3).sorted(tasks)[0] is short


def test_a_clients_deadline_presses_while_it_can_be_met() -> None:
    timed = running("timed", of=20, timed=True, deadline_ms=300)
    untimed = running("untimed", of=20, deadline_ms=300)
    short = running("short", of=8)
    assert by_urgency(timed, untimed, short, now_ms=0) == ["short", "timed", "untimed"]
    assert by_urgency(timed, untimed, short, now_ms=150) == ["timed", "short", "untimed"]
    assert by_urgency(timed, untimed, short, now_ms=190) == ["short", "timed", "untimed"], "it is too late for it"


def test_a_stream_of_short_tasks_does_not_starve_a_long_one() -> None:
    """One at a time, every 8 calls a new task of 8 calls: the shortest first alone would never serve the long one."""
    now_ms, long = 0, running("long", of=50, first_come_ms=500, tail_ms=2000)
    shorts: list[RunningTask] = []
    for step in range(1000):
        if step % 8 == 0:
            shorts.append(running(f"short{step}", of=8, accepted_ms=now_ms, first_come_ms=500, tail_ms=2000))
        first = ordered([long, *shorts], "urgency", PACES, now_ms, Urgency())[0]
        now_ms += 10
        advanced = first._replace(next_call=first.next_call + 1)
        if first is long:
            long = advanced
            if long.next_call == long.num_calls:
                break
        else:
            shorts = [s for s in (advanced if s is first else s for s in shorts) if s.next_call < s.num_calls]
    assert now_ms <= 3 * 500, "three times what it takes alone"


def test_without_the_pace_of_a_task_nobody_is_compared_by_work() -> None:
    tasks = [
        running("long", of=50),
        running("short", of=8, accepted_ms=1),
        running("odd", key=OTHER_KEY, accepted_ms=2),
    ]
    assert by_urgency(*tasks) == ["long", "short", "odd"]


def test_decodes_go_by_priority_then_by_a_deadline_close_by_then_by_age() -> None:
    decodes = [
        decode("old"),
        decode("far", timed=True, deadline_ms=9000),
        decode("near", timed=True, deadline_ms=1500),
        decode("default", deadline_ms=1000),
        decode("high", priority=1),
    ]
    assert [d.claim.job_id for d in decodes_in_order(decodes, 0)] == ["high", "near", "old", "far", "default"]
