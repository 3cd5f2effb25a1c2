"""Output and exit codes of the command line: results on stdout, all else on stderr, one line per error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import grpc
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from synerdiff.errors import SynerDiffError

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


def plain_table(*headings: str, numbers: bool = False) -> Table:
    """A table without lines. `numbers`: all columns but the first are aligned as numbers are."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", justify="right" if numbers and place else "left")
    return table


def exit_code(error: SynerDiffError) -> int:
    """The exit code that stands for `error`."""
    return _EXIT_CODES.get(error.code, EXIT_FAILED)


def fail(message: str, code: int) -> NoReturn:
    """Print `message` as an error and exit."""
    err.print(f"[bold red]error:[/] {escape(message)}")
    raise typer.Exit(code)


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Turn an error that the server answered, or a file that cannot be written, into one line and its exit code."""
    try:
        yield
    except SynerDiffError as error:
        fail(error.message, exit_code(error))
    except OSError as error:
        fail(str(error), EXIT_FAILED)
