"""The loads of the comparison."""

from bench.peers.measuring import ALONE, BURST, LOADS, POISSON, SATURATED, Amounts, load_of
from synerdiff.client.load.requests import Mix
from synerdiff.client.load.sending import ClosedLoop, OpenLoop

AMOUNTS = Amounts(clients=48, clients_of_one=4, turns=3, alone=6, poisson_s=100, burst=64)
MIX = Mix(("a cat", "a dog"))


def test_everybody_gets_the_same() -> None:
    for name in LOADS:
        assert load_of(name, AMOUNTS, MIX, 3, rate_per_s=2.0) == load_of(name, AMOUNTS, MIX, 3, rate_per_s=2.0)


def test_what_each_load_is() -> None:
    saturated, fewer = load_of(SATURATED, AMOUNTS, MIX, 3), load_of(SATURATED, AMOUNTS, MIX, 3, one=True)
    assert isinstance(saturated, ClosedLoop)
    assert isinstance(fewer, ClosedLoop)
    assert (saturated.concurrency, len(list(saturated.requests))) == (48, 144)
    assert (fewer.concurrency, len(list(fewer.requests))) == (4, 12)
    alone = load_of(ALONE, AMOUNTS, MIX, 3)
    assert isinstance(alone, ClosedLoop)
    assert (alone.concurrency, len(list(alone.requests))) == (1, 6)
    burst = load_of(BURST, AMOUNTS, MIX, 3)
    assert isinstance(burst, OpenLoop)
    assert {arrival.at_s for arrival in burst.arrivals} == {0.0}
    for name in POISSON:
        arrivals = load_of(name, AMOUNTS, MIX, 3, rate_per_s=10.0)
        assert isinstance(arrivals, OpenLoop)
        assert 800 < len(arrivals.arrivals) < 1200
