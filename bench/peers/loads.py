"""The loads that everybody gets."""

from collections.abc import Mapping
from dataclasses import dataclass

from synerdiff.client.load.arrivals import bursts, poisson
from synerdiff.client.load.requests import Drawn, Mix
from synerdiff.client.load.sending import ClosedLoop, Load, OpenLoop

SATURATED, ALONE, BURST = "saturated", "alone", "burst"
# Shares of what the best baseline serves when it is saturated.
POISSON: Mapping[str, float] = {"Poisson 70 %": 0.7, "Poisson 90 %": 0.9}
LOADS = (SATURATED, ALONE, *POISSON, BURST)


@dataclass(frozen=True)
class Amounts:
    """How long and how many. In the saturated load `clients` send `turns` requests each, one after the other, but
    `clients_of_one` of them where requests are served one at a time, which is as busy with fewer."""

    clients: int
    clients_of_one: int
    turns: int
    alone: int
    poisson_s: float
    burst: int


def load_of(name: str, amounts: Amounts, mix: Mix, seed: int, *, rate_per_s: float = 0.0, one: bool = False) -> Load:
    """A load, the same for the same arguments. `rate_per_s`: of Poisson arrivals; `one`: served one at a time."""
    if name == SATURATED:
        clients = amounts.clients_of_one if one else amounts.clients
        return ClosedLoop(Drawn(mix, seed, amounts.turns * clients), clients)
    if name == ALONE:
        return ClosedLoop(Drawn(mix, seed, amounts.alone), 1)
    if name == BURST:
        return OpenLoop(bursts(amounts.burst, mix, seed))
    return OpenLoop(poisson(rate_per_s, mix, seed, seconds=amounts.poisson_s))
