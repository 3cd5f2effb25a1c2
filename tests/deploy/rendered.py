"""The sets of manifests that tests look at, each rendered once."""

from copy import deepcopy
from functools import cache
from typing import Any

from deploy.checks.run import sets

SETS = tuple(sets())


@cache
def _rendered(name: str) -> list[Any]:
    return list(sets()[name]())


def rendered(name: str) -> list[Any]:
    """A copy of one of SETS, to be changed at will."""
    return deepcopy(_rendered(name))
