"""Output and exit codes of the command line: results on stdout, all else on stderr, one line per error."""

import asyncio
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from synerdiff.errors import SynerDiffError
from synerdiff.redis_process import RedisStartError

T = TypeVar("T")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

EXIT_FAILED = 1
EXIT_INVALID = 2
EXIT_UNAVAILABLE = 3
EXIT_CANCELLED = 4
EXIT_DEADLINE = 124

EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 the job or a process failed; 2 bad option or request, unknown model or job; "
    "3 the server is unreachable or full, try again later; 4 the job was cancelled; 124 the timeout ran out; "
    "130 interrupted by Ctrl-C."
)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
_EXIT_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: EXIT_INVALID,
    grpc.StatusCode.NOT_FOUND: EXIT_INVALID,
    grpc.StatusCode.ALREADY_EXISTS: EXIT_INVALID,
    grpc.StatusCode.UNAUTHENTICATED: EXIT_INVALID,
    grpc.StatusCode.PERMISSION_DENIED: EXIT_INVALID,
    grpc.StatusCode.UNIMPLEMENTED: EXIT_INVALID,
    grpc.StatusCode.UNAVAILABLE: EXIT_UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: EXIT_UNAVAILABLE,
    grpc.StatusCode.CANCELLED: EXIT_CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED: EXIT_DEADLINE,
}


class CommandError(Exception):
    """An error of a command, in a line; `code`: its exit code."""

    code = EXIT_FAILED


def plain_table(*headings: str, numbers: bool = False) -> Table:
    """A table without lines. `numbers`: all columns but the first are aligned as numbers are."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", justify="right" if numbers and place else "left")
    return table


def fail(message: str, code: int) -> NoReturn:
    """Print `message` as an error and exit."""
    err.print(f"[bold red]error:[/] {escape(message)}")
    raise typer.Exit(code)


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Turn an error of the server or of this machine into one line and its exit code."""
    try:
        yield
    except SynerDiffError as error:
        fail(error.message, _EXIT_CODES.get(error.code, EXIT_FAILED))
    except CommandError as error:
        fail(str(error), error.code)
    except (OSError, RedisStartError) as error:
        fail(str(error), EXIT_FAILED)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end. A signal cancels it, a second one its clean-up; exits with 128 + the signal's number."""
    received: list[int] = []

    async def interruptible() -> T:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()

        def interrupt(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in _SIGNALS:
            loop.add_signal_handler(number, interrupt, number)
        return await task

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        if not received:
            raise
        sys.exit(128 + received[0])


def check_folder(option: str, path: Path | None) -> None:
    """Exit where the folder of an option's file is not there."""
    if path is not None and not path.parent.is_dir():
        fail(f"{option}: there is no folder {path.parent}", EXIT_INVALID)


def check_plot(path: Path | None) -> None:
    """Exit where --plot's picture could not be drawn or written."""
    if path is None:
        return
    if path.suffix.lower() not in _PICTURE_SUFFIXES:
        fail(f"--plot: {path} has no suffix of a picture: one of {', '.join(_PICTURE_SUFFIXES)}", EXIT_INVALID)
    check_folder("--plot", path)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        fail("--plot needs matplotlib; install it with: pip install 'synerdiff[local]'", EXIT_INVALID)
