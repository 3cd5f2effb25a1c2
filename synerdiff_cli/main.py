"""The `synerdiff` command."""

import typer

from synerdiff_cli import bench, jobs, key, local, plan, profile, simulate, status, trace
from synerdiff_cli.console import EXIT_CODES_HELP

app = typer.Typer(
    help="Serve latent diffusion models, and ask them for pictures.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(local.demo)
app.command()(local.up)
app.command()(jobs.generate)
app.add_typer(jobs.app, name="jobs")
app.command()(key.key)
app.command()(profile.profile)
app.command()(plan.plan)
app.command()(simulate.simulate)
app.command()(status.models)
app.command()(status.status)
app.command()(trace.trace)
app.command()(bench.bench)


if __name__ == "__main__":
    app()
