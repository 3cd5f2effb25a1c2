"""`synerdiff jobs get|watch|cancel|delete`: one job."""

from datetime import datetime
from typing import Annotated

import typer

from synerdiff.client import Job
from synerdiff.jobs import JobState
from synerdiff_cli.console import err, errors_as_lines, out, run
from synerdiff_cli.generate import Output
from synerdiff_cli.making import Destination, destination, save_pictures
from synerdiff_cli.server import DEFAULT_ADDRESS, Address, Server, TlsCa, connected, server_at

app = typer.Typer(help="Ask about a job, follow it, cancel it, delete it.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]


@app.command()
def get(job: JobId, output: Output = None, address: Address = DEFAULT_ADDRESS, tls_ca: TlsCa = "") -> None:
    """Print how a job stands; with -o, write the pictures that it has so far."""
    with errors_as_lines():
        run(_get(server_at(address, tls_ca), job, destination(job, output) if output else None))


@app.command()
def watch(job: JobId, output: Output = None, address: Address = DEFAULT_ADDRESS, tls_ca: TlsCa = "") -> None:
    """Follow a job to its end and write its pictures. Ctrl-C leaves the job alone."""
    with errors_as_lines():
        run(_watch(server_at(address, tls_ca), job, output))


@app.command()
def cancel(job: JobId, address: Address = DEFAULT_ADDRESS, tls_ca: TlsCa = "") -> None:
    """Cancel a job; one that has ended is left as it is."""
    with errors_as_lines():
        run(_cancel(server_at(address, tls_ca), job))


@app.command()
def delete(job: JobId, address: Address = DEFAULT_ADDRESS, tls_ca: TlsCa = "") -> None:
    """Delete a job that has ended, with its pictures."""
    with errors_as_lines():
        run(_delete(server_at(address, tls_ca), job))


async def _get(server: Server, job_id: str, where: Destination | None) -> None:
    async with connected(server) as client:
        job = await client.job(job_id)
    _describe(job)
    if where is not None:
        for image in job.images:
            out.print(str(image.save(where.path(image))), markup=False)


async def _watch(server: Server, job_id: str, output: Output) -> None:
    async with connected(server) as client:
        events = client.watch(job_id)
        await save_pictures(client, events, destination(job_id, output), cancel_on_interrupt=False)


async def _cancel(server: Server, job_id: str) -> None:
    async with connected(server) as client:
        _describe(await client.cancel(job_id))


async def _delete(server: Server, job_id: str) -> None:
    async with connected(server) as client:
        await client.delete(job_id)
    out.print(f"job {job_id} is deleted")


def _describe(job: Job) -> None:
    state = job.state.name.lower()
    if job.state is JobState.QUEUED:
        state += f", {job.position} ahead"
    elif job.state in (JobState.RUNNING, JobState.DECODING):
        state += f", {job.progress:.0%}"
    out.print(f"job {job.job_id}: {state}")
    out.print(f"  model {job.model}, seed {job.seed}, accepted {_local(job.accepted_at)}, {len(job.images)} pictures")
    if job.error is not None:
        err.print(f"  {job.error.message}", markup=False)


def _local(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
