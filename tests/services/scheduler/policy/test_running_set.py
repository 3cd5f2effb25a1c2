"""Who runs: within the knee or the cap, over all batch keys, and never nobody."""

from dataclasses import replace

from services.scheduler.policy.pace import Pace
from services.scheduler.policy.policy_spec import POLICIES, PolicyBounds
from services.scheduler.policy.running_set import Rules, running_set
from services.scheduler.policy.snapshots import RunningTask
from synerdiff.skip_cfg import SkipCfgBudget
from tests.services.scheduler.snapshot_values import KEY, OTHER_KEY, running, unet_lane

RULES = Rules(
    spec=POLICIES["synerdiff"],
    bounds=PolicyBounds(unet_batch=3),
    paces={key: Pace(rows=6, call_ms=10.0, least_call_ms=6.0, decode_ms=0.0) for key in (KEY, OTHER_KEY)},
    budgets={"a": SkipCfgBudget("reuse", share=0.5, longest_run=1)},
)
UNSKIPPED = replace(RULES, budgets={})


def run(*tasks: RunningTask, rules: Rules = UNSKIPPED, waiting: int = 0) -> tuple[list[str], bool, int]:
    chosen = running_set(unet_lane(*tasks), waiting, 0, rules)
    return [seat.task.claim.job_id for seat in chosen.seats], chosen.busy, chosen.set_aside


def test_as_many_rows_as_the_knee_run() -> None:
    assert run(*(running(name) for name in "abcde")) == (["a", "b", "c"], True, 2)
    assert run(*(running(name) for name in "abc")) == (["a", "b", "c"], False, 0)
    assert run(*(running(name) for name in "abc"), waiting=1) == (["a", "b", "c"], True, 0)


def test_of_tasks_without_guidance_twice_as_many_run() -> None:
    assert run(*(running(name, rows=1) for name in "abcdefg")) == (list("abcdef"), True, 1)


def test_skips_make_room_while_tasks_wait() -> None:
    assert run(*(running(name, at=5) for name in "abcde"), rules=RULES) == (["a", "b", "c", "d"], True, 1)


def test_a_task_above_the_knee_runs_alone() -> None:
    narrow = replace(UNSKIPPED, paces={KEY: Pace(1, 10.0, 6.0, 0.0)})
    assert run(running("a"), running("b"), rules=narrow) == (["a"], True, 1)


def test_without_a_knee_the_cap_counts_tasks() -> None:
    for rules in (replace(UNSKIPPED, paces={}), replace(UNSKIPPED, spec=POLICIES["continuous"])):
        assert run(*(running(name, rows=1) for name in "abcde"), rules=rules)[0] == ["a", "b", "c"]


def test_batch_keys_share_what_one_batch_holds() -> None:
    tasks = [running(name, of=8) for name in "ab"] + [running(name, key=OTHER_KEY) for name in "xyz"]
    assert run(*tasks) == (["a", "b", "x"], True, 2)


def test_under_processor_sharing_everybody_runs() -> None:
    sharing = replace(UNSKIPPED, spec=replace(POLICIES["synerdiff"], order="sharing"))
    assert run(*(running(name) for name in "abcde"), rules=sharing) == (list("abcde"), False, 0)
