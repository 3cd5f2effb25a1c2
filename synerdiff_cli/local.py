"""`synerdiff up` and `synerdiff demo`: everything on this machine, from its start to its end."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import grpc
import redis.exceptions
import typer
from PIL import Image
from rich.markup import escape
from rich.status import Status

from synerdiff.client import AsyncClient
from synerdiff.profiles import load as load_profile
from synerdiff.redis_client import EvictingRedis, check_keeps_all, connect
from synerdiff.rpc import open_channel
from synerdiff.v1 import images_pb2, images_pb2_grpc
from synerdiff.worker_settings import CompileMode
from synerdiff_cli.console import EXIT_UNAVAILABLE, CommandError, err, errors_as_lines, out, run
from synerdiff_cli.deployment import GATEWAY, Deployment, LocalOptions, OptionError, model_sources, plan_deployment
from synerdiff_cli.making import Destination, Output, destination, save_pictures, terminal_picture
from synerdiff_cli.supervisor import ChildSpec, ChildState, Supervisor

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


def default_data_dir() -> Path:
    """`synerdiff` in the user's state folder ($XDG_STATE_HOME, ~/.local/state)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "synerdiff"


@contextlib.contextmanager
def owned(directory: Path) -> Iterator[Path]:
    """Own `directory` (made if missing; old logs: .1) inside the block. Raises OptionError where another does."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            in_use = f"{directory} is in use by another synerdiff; name another folder with --data-dir"
            raise OptionError(in_use) from None
        for log in (directory / "logs").glob("*.log"):
            log.replace(log.with_suffix(".log.1"))
        yield directory


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
    with errors_as_lines(), owned(data_dir or default_data_dir()) as folder:
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
    with errors_as_lines():
        where = destination(prompt, output)
        sources = model_sources(model or [])
        with _scratch_folder() as folder:
            options = LocalOptions(data_dir=folder, models=sources, policy=policy, dtype=dtype, threads=threads)
            run(_make_one(options, prompt, where, seed, steps))


def _readable(profile: Path | None) -> Path | None:
    """The file, if it is a profile; checked before anything is started. Raises InvalidRequest."""
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

        async def serve() -> None:
            if system.deployment.gateway:
                await system.supervisor.until_ready(GATEWAY)
                out.print(system.deployment.gateway)
            await asyncio.Event().wait()

        try:
            await system.supervisor.guard(serve())
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


class StartupDisplay:
    """`with StartupDisplay(children) as display`, and `display.change` as the supervisor's listener."""

    def __init__(self, children: Iterable[ChildSpec]) -> None:
        self._children = {child.name: child for child in children}
        self._states = dict.fromkeys(self._children, ChildState.STOPPED)
        self._began = time.monotonic()
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if err.is_terminal:
            self._status = err.status(self._line())
            self._status.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the live line; further changes are printed as lines of their own."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def change(self, name: str, state: ChildState) -> None:
        """Show that the child `name` is in `state` now."""
        if state is ChildState.RESTARTING:
            err.print(f"[yellow]{name} died and is started again[/]; its log is {self._children[name].log}")
        elif state is ChildState.READY and self._status is None:
            err.print(f"{name} is ready after {time.monotonic() - self._began:.1f} s")
        self._states[name] = state
        if self._status is not None:
            self._status.update(self._line())

    def refuse(self, model: str, reason: str) -> None:
        """Show that a model is left out."""
        err.print(f"[red]{escape(model)} is not served[/]: {escape(reason)}", soft_wrap=True)
        if self._status is not None:
            self._status.update(self._line())

    def _line(self) -> str:
        waiting = [name for name, state in self._states.items() if state is not ChildState.READY]
        count, ready = len(self._states), len(self._states) - len(waiting)
        if not waiting:
            return f"All {count} processes are ready; waiting until the scheduler has found the workers"
        return f"Starting {count} processes, {ready} ready; waiting for {', '.join(waiting)}"


class RedisUnreachable(CommandError):
    """Nothing that answers like a Redis is at the URL given."""

    code = EXIT_UNAVAILABLE


@dataclass(frozen=True)
class Running:
    """A deployment that takes requests. Work through `supervisor.guard`, so that it ends when a process gives up."""

    deployment: Deployment
    supervisor: Supervisor


@contextlib.asynccontextmanager
async def running(options: LocalOptions) -> AsyncIterator[Running]:
    """Start everything; inside the block it takes requests for every model; after it all processes are gone.

    Raises OptionError, RedisStartError, RedisUnreachable, or ChildGaveUp when a process keeps dying.
    """
    _check_port_is_free("--listen", options.listen)
    _check_port_is_free("--gateway", options.gateway)
    if options.redis_url:
        await check_redis(options.redis_url)
    deployment = plan_deployment(options)
    with StartupDisplay(deployment.children) as display:
        async with Supervisor(deployment.children, on_change=display.change, on_refused=display.refuse) as supervisor:
            await supervisor.start()
            names = {model.name for model in options.models}
            await supervisor.guard(_models_are_available(deployment.addresses[0], names, supervisor.left_out))
            display.close()
            yield Running(deployment, supervisor)


def _check_port_is_free(flag: str, listen: str) -> None:
    host, _, port = listen.rpartition(":")
    if not port.isdecimal() or port == "0":
        return
    with socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except (OSError, OverflowError) as error:
            raise OptionError(
                f"{flag}: cannot listen on {listen} ({error.strerror if isinstance(error, OSError) else error})"
            ) from error


async def check_redis(url: str) -> None:
    """Raise OptionError for an invalid URL or a Redis that evicts; RedisUnreachable where none answers."""
    try:
        async with connect(url) as client:
            await client.ping()
            await check_keeps_all(client)
    except EvictingRedis as error:
        raise OptionError(f"--redis-url: {error}") from error
    except ValueError as error:
        raise OptionError(f"--redis-url: {url!r} is no Redis URL ({error})") from error
    except redis.exceptions.RedisError as error:
        raise RedisUnreachable(f"--redis-url: no Redis answers at {url} ({error})") from error


async def _models_are_available(address: str, names: set[str], left_out: set[str]) -> None:
    """Return once the scheduler knows a worker of each kind for every model not in `left_out`, which may grow."""
    async with open_channel(address) as channel:
        stub = images_pb2_grpc.ImageGenerationStub(channel)
        available: set[str] = set()
        while not names - left_out <= available:
            with contextlib.suppress(grpc.aio.AioRpcError):
                reply = await stub.ListModels(images_pb2.ListModelsRequest(), timeout=2)
                available = {card.name for card in reply.models if card.available}
            await asyncio.sleep(0.1)
