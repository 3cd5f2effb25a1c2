"""The table of policies, small: the whole of it is `python -m bench.policies`."""

import pytest

from bench.command import typed
from bench.policies import Case, Latencies, Row, cases, printed, table
from services.scheduler.policy.policy_spec import Urgency

POLICIES = ("continuous", "synerdiff", "synerdiff skipping")


def overload(urgency: Urgency) -> Row:
    return table([Case("paper-table-serial", "mixed", "1.3", name, 1, 60, urgency) for name in POLICIES], processes=1)[
        0
    ]


def test_under_overload_mean_and_p99_are_no_worse_than_those_of_continuous() -> None:
    row = overload(Urgency())
    mean, p99 = row.excess["synerdiff"]
    assert mean < -0.01
    assert p99 < 0.01
    assert max(row.excess["synerdiff skipping"]) < -0.1
    least_work_first = overload(Urgency(tail_factor=1e6)).excess["synerdiff"]
    assert least_work_first[0] < mean
    assert least_work_first[1] > p99


def test_every_policy_serves_the_same_requests_of_every_cell() -> None:
    listed = cases(["a", "b"], ["equal", "mixed"], ["0.3", "burst"], 3, 10, Urgency())
    per_policy = 2 * ((3 + 1) + (3 + 3))
    assert len(listed) == 6 * per_policy
    assert len({case._replace(policy="") for case in listed}) == per_policy


def test_a_row_compares_with_the_best_of_the_others_in_each_figure() -> None:
    others = {"static": Latencies(2.0, 9.0), "dynamic": Latencies(4.0, 8.0)}
    row = Row("p", "mixed", "0.7", others | {"synerdiff": Latencies(1.0, 8.8)})
    assert printed([row]).splitlines()[-1] == (
        "| p | mixed | 0.7 | 2.00 / 9.00 | 4.00 / 8.00 | 1.00 / 8.80 | -50.0% / +10.0% |"
    )
    _row = table([Case("paper-table", "equal", "burst", name, 0, 4) for name in POLICIES[:2]], processes=1)[0]
    continuous, ours = (_row.policies[name] for name in POLICIES[:2])
    assert _row.excess == {
        "synerdiff": pytest.approx([ours.mean_s / continuous.mean_s - 1, ours.p99_s / continuous.p99_s - 1])
    }


def test_settings_are_read_from_pairs() -> None:
    assert typed(Urgency, ["tail_factor=3", "fair_factor=4"]) == Urgency(tail_factor=3, fair_factor=4)
