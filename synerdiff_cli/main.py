"""The `synerdiff` command."""

from collections.abc import Callable
from typing import Annotated

import typer

from services.scheduler.api.callers_file import is_name, key_hash, new_key
from synerdiff_cli import bench, jobs, local, plan, profile, simulate, status, trace
from synerdiff_cli.console import EXIT_CODES_HELP, EXIT_INVALID, err, fail, out

app = typer.Typer(
    help="Serve latent diffusion models, and ask them for pictures.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


_COMMANDS: tuple[Callable[..., None], ...] = (
    *(local.demo, local.up, jobs.generate, key, profile.profile, plan.plan, simulate.simulate),
    *(status.models, status.status, trace.trace, bench.bench),
)
for _command in _COMMANDS:
    app.command()(_command)
app.add_typer(jobs.app, name="jobs")


if __name__ == "__main__":
    app()
