"""`synerdiff plan`: the planner's round for a profile, compared with simpler ones."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from services.scheduler.planner.baseline_rounds import coarse, fine, vae_first
from services.scheduler.planner.planned_round import PlannedItem, PlannedRound, PlanQuery
from services.scheduler.planner.planner import plan_round
from synerdiff.profiles import Profile, load
from synerdiff_cli.console import EXIT_INVALID, errors_as_lines, fail, out, plain_table

_BASELINES: dict[str, Callable[[Profile, PlanQuery], PlannedRound]] = {
    "coarse": coarse,
    "fine": fine,
    "vae-first": vae_first,
}
_SAME_MS = 0.0005


def plan(
    profile: Annotated[Path, typer.Option(help="Profile file, as `synerdiff profile` writes it.")],
    unet: Annotated[int, typer.Option(help="Tasks that step.")],
    vae: Annotated[int, typer.Option(help="Decodes that are ready.")],
    threshold: Annotated[float, typer.Option(help="Least throughput, as a share of the highest.")] = 1.0,
    skips: Annotated[int, typer.Option(help="Guided tasks that may skip guidance.")] = 0,
    one_row: Annotated[int, typer.Option(help="Tasks without guidance, among --unet.")] = 0,
    skip_price_ms: Annotated[float, typer.Option(help="What a skip must earn, in ms of decodes' waiting.")] = 0,
    no_beside: Annotated[bool, typer.Option("--no-beside", help="No item does both.")] = False,
    no_chunking: Annotated[bool, typer.Option("--no-chunking", help="No decode spans items.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON: items, total_ms, mean_decode_ms, skips.")] = False,
) -> None:
    """Plan one round of UNet steps and decodes from a profile, and compare it with simpler ones."""
    query = PlanQuery(
        unet, vae, skips, one_row, threshold, skip_price_ms, beside=not no_beside, chunking=not no_chunking
    )
    if unet == vae == 0:
        fail("--unet, --vae: 0 and 0; nothing to plan", EXIT_INVALID)
    if unet >= 0 and one_row + skips > unet:
        fail(f"--one-row, --skips: {one_row} and {skips}; together at most the {unet} of --unet", EXIT_INVALID)
    with errors_as_lines():
        measured = load(profile)
    try:
        planned = plan_round(measured, query)
    except ValueError as error:
        name, _, problem = str(error).partition(":")
        fail(f"--{name.replace('_', '-')}:{problem}", EXIT_INVALID)
    except KeyError as error:
        fail(str(error.args[0]), EXIT_INVALID)
    if as_json:
        typer.echo(json.dumps(_as_fields(planned), indent=2))
        return
    _show(measured, query, planned)


def _as_fields(planned: PlannedRound) -> dict[str, object]:
    items = [
        {name: getattr(item, name) for name in ("unet", "skips", "decodes", "chunks")}
        | {"ms": round(item.ms, 3), "starts_ms": round(starts_ms, 3)}
        for item, starts_ms in _with_starts(planned)
    ]
    return {
        "items": items,
        "total_ms": round(planned.total_ms, 3),
        "mean_decode_ms": round(planned.mean_decode_ms, 3),
        "skips": planned.skips,
        "feasible": planned.feasible,
    }


def _with_starts(planned: PlannedRound) -> Iterator[tuple[PlannedItem, float]]:
    elapsed_ms = 0.0
    for item in planned.items:
        yield item, elapsed_ms
        elapsed_ms += item.ms


def _show(profile: Profile, query: PlanQuery, planned: PlannedRound) -> None:
    subject = profile.subject
    out.print(f"{subject.model} on {subject.device}: {query.unet} UNet steps, {query.vae} decodes in one round")
    out.print(_items(planned))
    bound_ms = planned.fastest_ms / query.threshold
    out.print(
        f"round {planned.total_ms:.1f} ms; allowed {bound_ms:.1f}: the least without skips, {planned.fastest_ms:.1f}, "
        f"over the threshold, {query.threshold:g}"
    )
    if not planned.feasible:
        out.print("no round keeps to the threshold; this is the fastest")
    out.print(
        f"objective {planned.objective:.1f} ms: {query.vae} decodes that end after {planned.mean_decode_ms:.1f} ms on "
        f"average, {planned.skips - query.one_row} skips at {query.skip_price_ms:g} ms each"
    )
    out.print()
    _show_comparison(profile, query, planned)


def _items(planned: PlannedRound) -> Table:
    table = plain_table(
        "item", "starts ms", "takes ms", "tasks", "one-row", "rows", "decodes", "chunks", "threads", numbers=True
    )
    for number, (item, starts_ms) in enumerate(_with_starts(planned), 1):
        times = (f"{starts_ms:.1f}", f"{item.ms:.1f}")
        unet = (str(item.unet), str(item.skips), str(item.rows)) if item.unet else ("", "", "")
        vae = (f"{item.decodes:g}", str(item.chunks)) if item.decodes else ("", "")
        threads = item.setting.unet_threads, item.setting.vae_threads
        table.add_row(str(number), *times, *unet, *vae, "{} + {}".format(*threads) if any(threads) else "")
    return table


def _show_comparison(profile: Profile, query: PlanQuery, planned: PlannedRound) -> None:
    table = plain_table("round", "total ms", "steps/s", "mean decode ms", "objective ms", "allowed", numbers=True)
    table.add_row("planned", *_sums(query, planned))
    reasons = []
    for name, baseline in _BASELINES.items():
        try:
            other = baseline(profile, query)
        except KeyError as error:
            reasons.append(f"{name}: {error.args[0]}")
            continue
        table.add_row(name, *_sums(query, other))
        reasons.append(f"{name}: {_against(query, planned, other)}")
    out.print(table)
    out.print("\n".join(reasons))


def _sums(query: PlanQuery, one: PlannedRound) -> tuple[str, ...]:
    times = (f"{one.total_ms:.1f}", f"{1000 * query.unet / one.total_ms:.1f}")
    return (*times, f"{one.mean_decode_ms:.1f}", f"{one.objective:.1f}", "yes" if one.feasible else "no")


def _against(query: PlanQuery, planned: PlannedRound, other: PlannedRound) -> str:
    """Why the planned round was preferred to the other."""
    if not other.feasible:
        return f"{other.total_ms - other.fastest_ms / query.threshold:.1f} ms slower than allowed"
    if other.objective > planned.objective + _SAME_MS:
        return f"objective {other.objective - planned.objective:.1f} ms worse"
    return "as good by the objective, which prefers fewer skips, then a shorter round, then fewer items"
