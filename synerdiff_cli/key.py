"""`synerdiff key`: a key for a caller."""

from typing import Annotated

import typer

from services.scheduler.api.callers_file import is_name, key_hash, new_key
from synerdiff_cli.console import EXIT_INVALID, err, fail, out


def key(
    name: Annotated[str, typer.Argument(help="The caller's name.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTION]...", help="As in the file: operator, priorities=normal,low.")
    ] = None,
) -> None:
    """Make an API key for the caller NAME.

    The line for the file of `--callers-file` goes to stdout and holds a hash alone. The key goes to stderr, this once.
    """
    if not is_name(name):
        fail(f"NAME: {name!r} is none: 1 to 64 letters, digits, '.', '_', '@' and '-'", EXIT_INVALID)
    made = new_key()
    out.print(" ".join((name, key_hash(made), *(options or ()))), markup=False)
    err.print(f"the key of {name}, which nobody can show again: {made}", markup=False)
