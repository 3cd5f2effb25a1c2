"""Kinds of command-line arguments that several benchmarks take."""

import argparse
from collections.abc import Callable


def some_of(*known: str) -> Callable[[str], list[str]]:
    """A reader of names by comma, of those known. What it reads raises argparse's own error."""

    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of: {', '.join(known)}")
        return names

    return read
