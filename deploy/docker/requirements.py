"""Prints what SynerDiff needs with the extras named: `python requirements.py PYPROJECT [EXTRA...]`."""

import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path


def requirements(pyproject: Path, extras: Iterable[str]) -> list[str]:
    """The requirements of the base and of `extras`, as pip reads them. Raises KeyError for an unknown extra."""
    project = tomllib.loads(pyproject.read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])))
