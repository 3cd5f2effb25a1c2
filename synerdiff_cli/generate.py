"""`synerdiff generate`: pictures from a running system."""

from pathlib import Path
from typing import Annotated

import typer

from synerdiff.cards import Sampler
from synerdiff.client import GenerateOptions
from synerdiff_cli.console import errors_as_lines, out, run
from synerdiff_cli.making import SUFFIXES, Destination, destination, save_pictures
from synerdiff_cli.server import DEFAULT_ADDRESS, Address, Server, TlsCa, connected, server_at

_SAMPLERS = ", ".join(sampler.name.lower() for sampler in Sampler)

Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="File or folder to write to. Default: PROMPT-SEED.png.")
]


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
        "image_format": image_format or _format_of(where),
        "priority": priority,
        "timeout": timeout,
        "preview_every": preview_every,
        "skip_cfg": False if no_skip_cfg else None,
        "exact": exact,
    }
    server = server_at(address, tls_ca)
    with errors_as_lines():
        run(_submit(server, prompt, options) if detach else _make(server, prompt, options, where, num_images))


async def _make(server: Server, prompt: str, options: GenerateOptions, where: Destination, num_images: int) -> None:
    async with connected(server) as client:
        await save_pictures(client, client.stream(prompt, **options), where, num_images=num_images)


async def _submit(server: Server, prompt: str, options: GenerateOptions) -> None:
    async with connected(server) as client:
        out.print((await client.submit(prompt, **options)).job_id)


def _format_of(where: Destination) -> str | None:
    return SUFFIXES[where.output.suffix.lower()].lower() if where.output else None
