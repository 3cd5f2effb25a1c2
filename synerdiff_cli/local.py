"""`synerdiff up` and `synerdiff demo`: everything on this machine."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer
from PIL import Image

from synerdiff.client import AsyncClient
from synerdiff.profiles import load as load_profile
from synerdiff.redis_process import RedisStartError
from synerdiff.worker_settings import CompileMode
from synerdiff_cli.console import EXIT_FAILED, EXIT_INVALID, EXIT_UNAVAILABLE, err, errors_as_lines, fail, out, run
from synerdiff_cli.deployment import GATEWAY, LocalOptions, OptionError, model_sources
from synerdiff_cli.generate import Output
from synerdiff_cli.making import Destination, destination, save_pictures, terminal_picture
from synerdiff_cli.running import RedisUnreachable, Running, running
from synerdiff_cli.supervisor import ChildGaveUp


class DataDirInUse(RuntimeError):
    """Another deployment runs with this folder."""


def default_data_dir() -> Path:
    """`synerdiff` in the user's state folder ($XDG_STATE_HOME, ~/.local/state)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "synerdiff"


@contextlib.contextmanager
def owned(directory: Path) -> Iterator[Path]:
    """Own `directory` (made if missing; old logs: .1) inside the block. Raises DataDirInUse where another does."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataDirInUse(
                f"{directory} is in use by another synerdiff; name another folder with --data-dir"
            ) from None
        for log in (directory / "logs").glob("*.log"):
            log.replace(log.with_suffix(".log.1"))
        yield directory


Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="Model directory, PATH or NAME=PATH; may be repeated. Default: the bundled emoji."),
]


Dtype = Literal["auto", "float32", "bfloat16", "float16"]
CompileOption = Annotated[
    CompileMode, typer.Option(help="Compile the model: auto in the background, wait before serving, off never.")
]
DtypeOption = Annotated[Dtype, typer.Option(help="What to compute in; auto: what the device does best.")]
VaeDtypeOption = Annotated[
    Dtype,
    typer.Option(help="What the VAE computes in; auto: as the model does, float32 where its config asks for that."),
]
Threads = Annotated[int, typer.Option(help="CPU threads of each worker; 0: an equal share of the cores.", min=0)]
Policy = Annotated[str, typer.Option(help="How batches are made. Default: the scheduler's.")]


def up(
    policy: Policy = "",
    model: Models = None,
    unet_workers: Annotated[int, typer.Option(help="UNet workers for each model.", min=1, max=64)] = 1,
    vae_workers: Annotated[int, typer.Option(help="VAE workers for each model.", min=1, max=64)] = 1,
    schedulers: Annotated[int, typer.Option(help="Schedulers; each on the next port.", min=1, max=16)] = 1,
    redis_url: Annotated[str, typer.Option(help="A Redis that is there already. Default: one of its own.")] = "",
    listen: Annotated[str, typer.Option(help="Where to serve; port 0: a free one.", metavar="HOST:PORT")] = (
        "127.0.0.1:50051"
    ),
    gateway: Annotated[
        str, typer.Option(help="Where to serve HTTP: the OpenAI images API and pages.", metavar="HOST:PORT")
    ] = "127.0.0.1:8000",
    no_gateway: Annotated[bool, typer.Option("--no-gateway", help="Serve no HTTP.")] = False,
    dtype: DtypeOption = "auto",
    vae_dtype: VaeDtypeOption = "auto",
    threads: Threads = 0,
    profile: Annotated[
        Path | None, typer.Option(help="Profile of this machine, as `synerdiff profile` wrote it.", dir_okay=False)
    ] = None,
    idle_profile: Annotated[bool, typer.Option(help="Measure a profile when idle where there is none.")] = True,
    compile: CompileOption = "auto",
    data_dir: Annotated[Path | None, typer.Option(help="For logs and Redis' data. Default: user state folder.")] = None,
) -> None:
    """Run everything on this machine until Ctrl-C. Addresses go to stdout once requests are served there.

    Jobs that were accepted and not finished are taken up again by the next `up` with the same data folder.
    """
    with local_errors_as_lines(), owned(data_dir or default_data_dir()) as folder:
        options = LocalOptions(
            data_dir=folder.resolve(),
            models=model_sources(model or []),
            policy=policy,
            unet_workers=unet_workers,
            vae_workers=vae_workers,
            schedulers=schedulers,
            listen=listen,
            gateway="" if no_gateway else gateway,
            redis_url=redis_url,
            dtype=dtype,
            vae_dtype=vae_dtype,
            threads=threads,
            profile=_readable(profile),
            idle_profile=idle_profile,
            compile=compile,
        )
        run(_stay_up(options))


def demo(
    prompt: Annotated[str, typer.Argument(help="What to draw.")] = "a slice of pizza",
    output: Output = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same picture.", min=0)] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", min=1)] = None,
    policy: Policy = "",
    model: Models = None,
    dtype: DtypeOption = "auto",
    threads: Threads = 0,
) -> None:
    """Start everything on this machine, make one picture, stop everything. The file's name goes to stdout."""
    with local_errors_as_lines():
        where = destination(prompt, output)
        sources = model_sources(model or [])
        with _scratch_folder() as folder:
            options = LocalOptions(data_dir=folder, models=sources, policy=policy, dtype=dtype, threads=threads)
            run(_make_one(options, prompt, where, seed, steps))


def _readable(profile: Path | None) -> Path | None:
    """The file, if it is a profile: refused here, before anything is started. Raises InvalidRequest."""
    if profile is None:
        return None
    load_profile(profile)
    return profile.resolve()


async def _stay_up(options: LocalOptions) -> None:
    async with running(options) as system:
        names = ", ".join(model.name for model in options.models if model.name not in system.supervisor.left_out)
        err.print(f"Serving {names}. Logs are in {options.data_dir / 'logs'}; Ctrl-C stops everything.")
        err.print(f"Try: synerdiff generate 'a slice of pizza' --address {system.deployment.addresses[0]}")
        out.print("\n".join(system.deployment.addresses))
        try:
            await system.supervisor.guard(_forever(system))
        finally:
            err.print("Stopping ...")


async def _make_one(
    options: LocalOptions, prompt: str, where: Destination, seed: int | None, steps: int | None
) -> None:
    async with running(options) as system, AsyncClient(system.deployment.addresses[0]) as client:
        events = client.stream(
            prompt, model=options.models[0].name, seed=seed, num_inference_steps=steps, preview_every=2
        )
        paths = await system.supervisor.guard(save_pictures(client, events, where))
    if err.is_terminal:
        with Image.open(paths[0]) as picture:
            err.print(terminal_picture(picture))
    err.print(f"[bold]Your picture is {paths[0]}[/]")


async def _forever(system: Running) -> None:
    if system.deployment.gateway:
        await system.supervisor.until_ready(GATEWAY)
        out.print(system.deployment.gateway)
    await asyncio.Event().wait()


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="synerdiff-demo-"))
    keep_logs = False
    try:
        yield folder
    except Exception:
        keep_logs = (folder / "logs").is_dir()
        raise
    finally:
        for path in folder.iterdir():
            if path.name != "logs" or not keep_logs:
                shutil.rmtree(path, ignore_errors=True)
        if keep_logs:
            err.print(f"The logs are in {folder / 'logs'}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def local_errors_as_lines() -> Iterator[None]:
    """Turn errors of this machine into one line each."""
    try:
        with errors_as_lines():
            yield
    except (OptionError, DataDirInUse) as error:
        fail(str(error), EXIT_INVALID)
    except (RedisStartError, ChildGaveUp) as error:
        fail(str(error), EXIT_FAILED)
    except RedisUnreachable as error:
        fail(str(error), EXIT_UNAVAILABLE)
