"""Several servers under the same load: one after the other, in rounds, so that a machine's swings meet all of them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def order_of_round(targets: Sequence[T], number: int) -> tuple[T, ...]:
    """The order of a round: every target once, starting with another each time, every other time backwards.

    So each target comes early and late, and after each of its neighbours, about as often as any other.
    """
    shift = (number // 2) % len(targets) if targets else 0
    rotated = (*targets[shift:], *targets[:shift])
    return rotated[::-1] if number % 2 else rotated


async def in_turns(targets: Sequence[T], rounds: int, run: Callable[[T, int], Awaitable[R]]) -> list[dict[T, R]]:
    """`run(target, round)` for every target of every round, never two at once. Returns the results of each round."""
    results = []
    for number in range(rounds):
        done = {target: await run(target, number) for target in order_of_round(targets, number)}
        results.append({target: done[target] for target in targets})
    return results
