"""`synerdiff profile`: measure how long items of a model take on this machine, and write that down."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from services.scheduler.profiles.measuring.course import DEFAULT_BOUND
from services.scheduler.profiles.measuring.profiler import MOST_ROWS, ProfilerOptions
from synerdiff.profiles import dump
from synerdiff.settings import load
from synerdiff.telemetry import configure_logging
from synerdiff.worker_settings import WorkerSettings
from synerdiff_cli.console import check_folder, check_plot, err, errors_as_lines, out, run
from synerdiff_cli.deployment import LocalOptions, OptionError, model_sources
from synerdiff_cli.local import CompileOption, DtypeOption, Threads, VaeDtypeOption
from synerdiff_cli.measuring import Measured, Split, Wishes, measure, parse_shares, splits_of, with_note
from synerdiff_cli.profile_display import plot_profile, shares_table, summary

_QUICK_BOUND = 0.05
_QUICK_S = 60.0


def profile(
    model: Annotated[str, typer.Option(help="Model directory, PATH or NAME=PATH. Default: the bundled emoji.")] = "",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="File to write. Default: MODEL-profile.json.", dir_okay=False)
    ] = None,
    redis_url: Annotated[str, typer.Option(help="A Redis to keep the profile in too, for workers to come.")] = "",
    bound: Annotated[
        float, typer.Option(help="How far off throughput may be by what the profile decides.", min=0.005, max=1)
    ] = DEFAULT_BOUND,
    budget_s: Annotated[
        float, typer.Option(help="Most seconds to measure for, if all is sure to the bound before.", min=1)
    ] = 240,
    max_rows: Annotated[
        int, typer.Option(help="Most UNet rows of an item, two a guided task; slots may allow fewer.", min=2, max=512)
    ] = MOST_ROWS,
    max_decodes: Annotated[int, typer.Option(help="Most decodes of an item.", min=1, max=64)] = 6,
    chunks: Annotated[str, typer.Option(help="Band counts to try, by commas.")] = "1,2,4",
    width: Annotated[int, typer.Option(help="Width of the pictures. Default: the model's own.", min=0)] = 0,
    height: Annotated[int, typer.Option(help="Height of the pictures. Default: the model's own.", min=0)] = 0,
    dtype: DtypeOption = "auto",
    vae_dtype: VaeDtypeOption = "auto",
    threads: Threads = 0,
    compile: CompileOption = "wait",
    shares: Annotated[
        str, typer.Option(help="Splits of the device to try, UNet:VAE in percent, as 70:30,60:40; the best is written.")
    ] = "",
    fidelity: Annotated[bool, typer.Option(help="Also measure how much guidance pictures can do without.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the profile: .png, .svg or .pdf.", dir_okay=False)] = None,
    quick: Annotated[bool, typer.Option(help=f"At most a minute: no bands, a bound of {_QUICK_BOUND:g}.")] = False,
) -> None:
    """Measure how long batches of this model take on this machine, alone and side by side. The file goes to stdout.

    Starts a UNet worker and a VAE worker of its own; for numbers worth keeping, nothing else should run.
    """
    configure_logging("profile", "warning")
    with errors_as_lines():
        sources = model_sources([model] if model else [])
        target = out_file or Path(f"{sources[0].name}-profile.json")
        check_folder("--out", target)
        check_plot(plot)
        options = ProfilerOptions(max_rows, max_decodes, _band_counts(chunks), bound, budget_s)
        if quick:
            bound, budget_s = max(bound, _QUICK_BOUND), min(budget_s, _QUICK_S)
            options = replace(options, chunks=(1,), bound=bound, budget_s=budget_s)
        with tempfile.TemporaryDirectory(prefix="synerdiff-profile-") as folder:
            local = LocalOptions(Path(folder), sources, schedulers=0, compile=compile)
            local = replace(local, dtype=dtype, vae_dtype=vae_dtype, threads=threads)
            found = run(measure(Wishes(_splits(local, shares), options, width, height, fidelity, redis_url)))
        _keep(found, target, plot)


def _keep(found: Sequence[Measured], target: Path, plot: Path | None) -> None:
    made = with_note(found)
    target.write_text(dump(made), encoding="utf-8")
    if plot:
        plot_profile(made, plot)
        err.print(f"The plot is {plot}")
    if len(found) > 1:
        err.print(shares_table([(each.split.label, each.profile, each.pictures_per_s) for each in found]))
    err.print(summary(made))
    out.print(str(target))


def _splits(local: LocalOptions, shares: str) -> tuple[Split, ...]:
    """The splits to measure, each with a folder of its own; without shares one, of workers as they are."""
    if not shares:
        return (Split((), local),)
    splits = splits_of(local, parse_shares(shares), load(WorkerSettings, []).device)
    folders = [local.data_dir / f"split-{number}" for number in range(len(splits))]
    return tuple(
        replace(split, local=replace(split.local, data_dir=folder))
        for split, folder in zip(splits, folders, strict=True)
    )


def _band_counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        counts = ()
    if not counts or counts[0] < 1 or counts[-1] > 64:
        raise OptionError(f"--chunks: {text!r} is not a list of numbers from 1 to 64, as 1,2,4")
    return counts
