"""Orders: who goes first, and that nobody waits for ever."""

from services.scheduler.policy.ordering import Pace, decodes_in_order, ordered
from services.scheduler.policy.policy_spec import Urgency
from services.scheduler.snapshots import RunningTask
from tests.services.scheduler.snapshot_values import KEY, OTHER_KEY, decode, running

PACE = Pace(knee_rows=4, call_ms=10.0, least_call_ms=6.0)
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
    # Alone in first-come order it would have taken 50 calls of 10 ms; twice that is its allowance.
    long, short = running("long", of=50), running("short", of=8, accepted_ms=450)
    assert by_urgency(long, short, now_ms=300) == ["short", "long"]
    assert by_urgency(long, short, now_ms=450) == ["long", "short"]


def test_work_that_stood_before_a_task_gives_it_more_time() -> None:
    # 80 calls of others, two at a time, are 400 ms more in first-come order, so 800 ms more allowance.
    long, short = running("long", of=50, calls_ahead=80), running("short", of=8, accepted_ms=1150)
    assert by_urgency(long, short, now_ms=1050) == ["short", "long"]
    assert by_urgency(long, short, now_ms=1150) == ["long", "short"]


def test_a_clients_deadline_presses_while_it_can_be_met() -> None:
    timed = running("timed", of=20, timed=True, deadline_ms=300, calls_ahead=1000)
    untimed = running("untimed", of=20, deadline_ms=300, calls_ahead=1000)
    short = running("short", of=8, calls_ahead=1000)
    assert by_urgency(timed, untimed, short, now_ms=0) == ["short", "timed", "untimed"]
    assert by_urgency(timed, untimed, short, now_ms=150) == ["timed", "short", "untimed"]
    assert by_urgency(timed, untimed, short, now_ms=190) == ["short", "timed", "untimed"], "it is too late for it"


def test_pressed_tasks_do_not_take_turns_at_every_step() -> None:
    """Least slack first, but a task that runs keeps its slack while the others lose theirs."""
    tasks = {name: running(name, of=50, accepted_ms=k) for k, name in enumerate("ab")}
    switches, last = 0, ""
    for step in range(60):
        first = by_urgency(*tasks.values(), now_ms=600 + 10 * step)[0]
        switches += first != last
        last = first
        tasks[first] = tasks[first]._replace(next_call=tasks[first].next_call + 1)
        tasks = {name: task for name, task in tasks.items() if task.next_call < task.num_calls}
    assert switches <= 60 / 8 + 1


def test_a_stream_of_short_tasks_does_not_starve_a_long_one() -> None:
    """One at a time, every 8 calls a new task of 8 calls: the shortest first alone would never serve the long one."""
    now_ms, long = 0, running("long", of=50)
    shorts: list[RunningTask] = []
    for step in range(1000):
        if step % 8 == 0:
            shorts.append(running(f"short{step}", of=8, accepted_ms=now_ms, calls_ahead=50))
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
