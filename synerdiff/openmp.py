"""How a worker's OpenMP threads wait for each other on cores that they share with another worker.

libgomp reads this once, when torch is loaded. Its own default, to spin for milliseconds, costs the neighbour twelvefold
when two workers use all cores at once. Without any spinning the threads of a worker that runs alone sleep between any
two operators, which costs time. So threads sleep after some fifty microseconds (a spin is 24 ns on an AMD EPYC).
"""

import os
from collections.abc import MutableMapping

WAIT_POLICY, SPIN_COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
_SPINS = "2000"


def prepare_openmp(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set variables that the environment lacks, before torch is imported; no spin count for another wait policy."""
    if environment.setdefault(WAIT_POLICY, "passive").lower() == "passive":
        environment.setdefault(SPIN_COUNT, _SPINS)
