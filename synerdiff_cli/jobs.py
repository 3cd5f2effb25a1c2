"""`synerdiff generate`: pictures from a running system; `synerdiff jobs get|watch|cancel|delete`: one job."""

from datetime import datetime
from typing import Annotated

import typer

from synerdiff.cards import Sampler
from synerdiff.client import AsyncClient, GenerateOptions, Job
from synerdiff.jobs import JobState
from synerdiff_cli.console import err, errors_as_lines, out
from synerdiff_cli.making import SUFFIXES, Output, destination, save_pictures
from synerdiff_cli.server import DEFAULT_ADDRESS, Address, TlsCa, with_client

_SAMPLERS = ", ".join(sampler.name.lower() for sampler in Sampler)

app = typer.Typer(help="Ask about a job, follow it, cancel it, delete it.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    output: Output = None,
    model: Annotated[str, typer.Option(help="The model's name. Default: the server's.")] = "",
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", min=1)] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Pull towards the prompt; 1: none.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same picture; image k has SEED + k.", min=0)] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.", min=1)] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.", min=1)] = None,
    negative_prompt: Annotated[str, typer.Option(help="What not to draw.")] = "",
    sampler: Annotated[str, typer.Option(help=f"One of {_SAMPLERS}. Default: the model's.")] = "",
    num_images: Annotated[int, typer.Option("-n", "--num-images", help="How many pictures.", min=1)] = 1,
    image_format: Annotated[str, typer.Option("--format", help="png, jpeg or webp. Default: by -o, or png.")] = "",
    priority: Annotated[str, typer.Option(help="high, normal or low.")] = "normal",
    timeout: Annotated[float | None, typer.Option(help="Seconds; then the job is given up.")] = None,
    preview_every: Annotated[int, typer.Option(help="Show a preview every so many steps; 0: none.", min=0)] = 0,
    no_skip_cfg: Annotated[bool, typer.Option("--no-skip-cfg", help="Guidance on every step.")] = False,
    exact: Annotated[
        bool | None, typer.Option("--exact/--no-exact", help="The same to the bit, whatever else is drawn; slower.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's id and do not wait.")] = False,
    address: Address = DEFAULT_ADDRESS,
    tls_ca: TlsCa = "",
) -> None:
    """Make pictures from PROMPT and write them to files, whose names go to stdout.

    Options that are left out take the model's defaults. Ctrl-C cancels the job.
    """
    where = destination(prompt, output)
    by_suffix = SUFFIXES[where.output.suffix.lower()].lower() if where.output else None
    options: GenerateOptions = {
        "model": model or None,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "width": width,
        "height": height,
        "negative_prompt": negative_prompt,
        "sampler": sampler or None,
        "num_images": num_images,
        "image_format": image_format or by_suffix,
        "priority": priority,
        "timeout": timeout,
        "preview_every": preview_every,
        "skip_cfg": False if no_skip_cfg else None,
        "exact": exact,
    }

    async def make(client: AsyncClient) -> None:
        if detach:
            out.print((await client.submit(prompt, **options)).job_id)
        else:
            await save_pictures(client, client.stream(prompt, **options), where, num_images=num_images)

    with_client(address, tls_ca, make)


@app.command()
def get(job: JobId, output: Output = None, address: Address = DEFAULT_ADDRESS, tls_ca: TlsCa = "") -> None:
    """Print how a job stands; with -o, write the pictures that it has so far."""
    where = destination(job, output) if output else None
    found = with_client(address, tls_ca, lambda client: client.job(job))
    _describe(found)
    if where is not None:
        with errors_as_lines():
            for image in found.images:
                out.print(str(image.save(where.path(image))), markup=False)


@app.command()
def watch(job: JobId, output: Output = None, address: Address = DEFAULT_ADDRESS, tls_ca: TlsCa = "") -> None:
    """Follow a job to its end and write its pictures. Ctrl-C leaves the job alone."""
    where = destination(job, output)
    with_client(
        address, tls_ca, lambda client: save_pictures(client, client.watch(job), where, cancel_on_interrupt=False)
    )


@app.command()
def cancel(job: JobId, address: Address = DEFAULT_ADDRESS, tls_ca: TlsCa = "") -> None:
    """Cancel a job; one that has ended is left as it is."""
    _describe(with_client(address, tls_ca, lambda client: client.cancel(job)))


@app.command()
def delete(job: JobId, address: Address = DEFAULT_ADDRESS, tls_ca: TlsCa = "") -> None:
    """Delete a job that has ended, with its pictures."""
    with_client(address, tls_ca, lambda client: client.delete(job))
    out.print(f"job {job} is deleted")


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
