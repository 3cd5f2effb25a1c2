"""`synerdiff profile`: measure how long items of a model take on this machine, and write that down."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from services.scheduler.profiler.probe_rounds import ProbeFailed
from services.scheduler.profiler.probe_session import probing
from services.scheduler.profiler.profile_store import ProfileStore
from services.scheduler.profiler.profiler import Profiler, ProfilerOptions
from services.scheduler.profiler.profiling import DEFAULT_BOUND
from services.scheduler.profiler.samples import QUICK, Effort
from synerdiff.profiles import Profile, dump
from synerdiff.redis_client import connect
from synerdiff.registry import WorkerRegistry
from synerdiff.skip_cfg import SkipCfgBudget
from synerdiff.telemetry import configure_logging
from synerdiff_cli.console import EXIT_FAILED, err, fail, out
from synerdiff_cli.deployment import LocalOptions, OptionError, model_sources, plan_deployment
from synerdiff_cli.fidelity import FidelityFailed, measured_budget
from synerdiff_cli.interruption import run
from synerdiff_cli.local import Dtype, DtypeOption, Threads, local_errors_as_lines
from synerdiff_cli.profile_display import ProfileDisplay, summary
from synerdiff_cli.profile_plot import check_can_plot, plot_profile
from synerdiff_cli.running import check_redis
from synerdiff_cli.startup_display import StartupDisplay
from synerdiff_cli.supervisor import Supervisor

_QUICK_BOUND = 0.2
_QUICK_S = 60.0


@dataclass(frozen=True)
class _Wishes:
    """What to measure, and where the result goes. `width` and `height` in pixels, 0: the model's native size."""

    local: LocalOptions
    profiler: ProfilerOptions
    width: int
    height: int
    fidelity: bool
    redis_url: str


def profile(
    model: Annotated[str, typer.Option(help="Model directory, PATH or NAME=PATH. Default: the bundled emoji.")] = "",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="File to write. Default: MODEL-profile.json.", dir_okay=False)
    ] = None,
    redis_url: Annotated[str, typer.Option(help="A Redis to keep the profile in too, for workers to come.")] = "",
    bound: Annotated[
        float, typer.Option(help="Relative error of interpolation that is good enough.", min=0.005, max=1)
    ] = DEFAULT_BOUND,
    budget_s: Annotated[
        float, typer.Option(help="Most seconds to measure for, if the bound is not met before.", min=1)
    ] = 600,
    max_rows: Annotated[int, typer.Option(help="Most UNet rows of an item; two a guided task.", min=1, max=512)] = 32,
    max_decodes: Annotated[int, typer.Option(help="Most decodes of an item.", min=1, max=64)] = 6,
    chunks: Annotated[str, typer.Option(help="Band counts to try, by commas.")] = "1,2,4",
    width: Annotated[int, typer.Option(help="Width of the pictures. Default: the model's own.", min=0)] = 0,
    height: Annotated[int, typer.Option(help="Height of the pictures. Default: the model's own.", min=0)] = 0,
    dtype: DtypeOption = Dtype.AUTO,
    threads: Threads = 0,
    fidelity: Annotated[bool, typer.Option(help="Also measure how much guidance pictures can do without.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the profile into this PNG file.", dir_okay=False)] = None,
    quick: Annotated[bool, typer.Option(help="At most a minute: fewer samples, no bands, a bound of 0.2.")] = False,
) -> None:
    """Measure how long batches of this model take on this machine, alone and side by side. The file goes to stdout.

    Starts a UNet worker and a VAE worker of its own; for numbers worth keeping, nothing else should run.
    """
    configure_logging("profile", "warning")
    with local_errors_as_lines():
        sources = model_sources([model] if model else [])
        target = out_file or Path(f"{sources[0].name}-profile.json")
        _check_folder("--out", target)
        if plot:
            _check_folder("--plot", plot)
            check_can_plot()
        options = ProfilerOptions(
            max_rows=max_rows,
            max_decodes=max_decodes,
            chunks=(1,) if quick else _band_counts(chunks),
            bound=max(bound, _QUICK_BOUND) if quick else bound,
            budget_s=min(budget_s, _QUICK_S) if quick else budget_s,
            effort=QUICK if quick else Effort(),
        )
        with tempfile.TemporaryDirectory(prefix="synerdiff-profile-") as folder:
            local = LocalOptions(Path(folder), sources, schedulers=0, dtype=dtype, threads=threads)
            made = run(_measure(_Wishes(local, options, width, height, fidelity, redis_url)))
        target.write_text(dump(made), encoding="utf-8")
        if plot:
            plot_profile(made, plot)
            err.print(f"The plot is {plot}")
        err.print(summary(made))
        out.print(str(target))


async def _measure(wishes: _Wishes) -> Profile:
    if wishes.redis_url:
        await check_redis(wishes.redis_url)
    made = await _measure_times(wishes)
    if wishes.fidelity:
        made = replace(made, skip_cfg=await _budget(wishes))
    if wishes.redis_url:
        async with connect(wishes.redis_url) as redis:
            await ProfileStore(redis).put(made)
    return made


async def _measure_times(wishes: _Wishes) -> Profile:
    async with _workers(wishes.local) as (supervisor, registry):
        profiler = Profiler(wishes.profiler)

        async def work() -> Profile:
            async with probing(registry, wishes.width, wishes.height) as prober:
                with ProfileDisplay() as display:
                    return await profiler.run(prober, display.show)

        try:
            return await supervisor.guard(work())
        except ProbeFailed as error:
            fail(f"could not be measured: {error}", EXIT_FAILED)


@asynccontextmanager
async def _workers(options: LocalOptions) -> AsyncIterator[tuple[Supervisor, WorkerRegistry]]:
    """A Redis and one worker of each kind, ready; gone after the block."""
    deployment = plan_deployment(options)
    with StartupDisplay(deployment.children) as display:
        async with Supervisor(deployment.children, on_change=display.change) as supervisor:
            await supervisor.start()
            display.close()
            async with connect(deployment.redis_url) as redis:
                yield supervisor, WorkerRegistry(redis)


async def _budget(wishes: _Wishes) -> SkipCfgBudget | None:
    with ProfileDisplay() as display:
        try:
            return await measured_budget(wishes.local.models[0].path, wishes.local.dtype, display.show_fidelity)
        except FidelityFailed as error:
            fail(str(error), EXIT_FAILED)


def _band_counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        counts = ()
    if not counts or counts[0] < 1 or counts[-1] > 64:
        raise OptionError(f"--chunks: {text!r} is not a list of numbers from 1 to 64, as 1,2,4")
    return counts


def _check_folder(option: str, path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise OptionError(f"{option}: there is no folder {path.absolute().parent}")
