"""Several servers in turns."""

import asyncio
from itertools import pairwise

from synerdiff.client.load.rounds import in_turns, order_of_round


def test_everybody_comes_first_and_last_as_often_as_any_other() -> None:
    names = ("a", "b", "c")
    orders = [order_of_round(names, number) for number in range(6)]
    assert all(sorted(order) == sorted(names) for order in orders)
    assert sorted(order[0] for order in orders) == sorted(names * 2)
    assert sorted(order[-1] for order in orders) == sorted(names * 2)
    after = {pair for order in orders for pair in pairwise(order)}
    assert after == {(a, b) for a in names for b in names if a != b}


async def test_never_two_at_once_and_results_by_round() -> None:
    under_way: list[str] = []
    began: list[tuple[str, int]] = []

    async def run(name: str, number: int) -> str:
        assert under_way == []
        under_way.append(name)
        began.append((name, number))
        await asyncio.sleep(0.001)
        under_way.remove(name)
        return f"{name}{number}"

    assert await in_turns(("a", "b"), 3, run) == [{"a": f"a{k}", "b": f"b{k}"} for k in range(3)]
    assert began == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("b", 2), ("a", 2)]
