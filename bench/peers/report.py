"""A page of docs/ from the results of `python -m bench.peers`.

    python -m bench.peers.report [FILE ...] [--out docs/benchmarks-peers.md]

Without files: every peers-*.json under bench/results. Pictures go to docs/pictures. Every number comes from the files.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.command import run
from bench.peers.contenders import BATCHED, LOOP, ONE, OURS
from bench.peers.findings import (
    LATENCY_LOADS,
    Loss,
    best_baseline,
    contenders,
    losses,
    median,
    over,
    overloaded,
    values,
)
from bench.peers.loads import POISSON, SATURATED
from bench.peers.picture import draw
from bench.reporting import RESULTS, markdown_table, number
from synerdiff.client.load.summary import Ratio

DOCS = Path(__file__).parents[2] / "docs"
Result = Mapping[str, Any]

_VALUES = {"images_per_s": "images/s", "mean_s": "mean latency", "p99_s": "P99 latency"}

_HEAD = """# Benchmarks against a diffusers pipeline

`python -m bench.peers.report` writes this page from the results of the commands below. [benchmarks.md](benchmarks.md)
has the other figures.

- **one at a time**: a diffusers pipeline behind a small gRPC server serves one request after the other.
- **batched**: the same server draws the alike requests that wait, at most its best batch at once. It finds that size
  and the layout of the weights at its start. The next batch gathers while it draws one.
- **bare loop**: the pipeline without a server, called over and over at its best batch size (one picture at a time under
  the load of one client). It bounds a server of whole batches from above, within the machine's noise.
- *eager*: as PyTorch runs it. *compiled*: UNet and decoder through inductor with frozen weights, once per batch size;
  batches are padded to these sizes.

All contenders get the same requests in turns within one round, and the others rest meanwhile. Latency counts from the
time at which a request was due. Ratios are taken within a round; the tables show their median and quartiles.
"""


def document(results: Sequence[Result], pictures: Mapping[str, str] | None = None) -> str:
    """The whole document. `pictures`: by dtype, the path to link to."""
    parts = [_HEAD, "## Where and how", _machines(results), _commands(results)]
    for result in results:
        parts.append(f"## {result['dtype']}")
        parts.append(_about(result))
        if pictures and result["dtype"] in pictures:
            parts.append(f"![{result['dtype']}]({pictures[result['dtype']]})")
        parts += [_throughput(result), _latency(result)]
    parts += ["## What we lose at", *(_losses(result) for result in results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _machines(results: Sequence[Result]) -> str:
    return "\n\n".join(dict.fromkeys(_machine(result) for result in results))


def _machine(result: Result) -> str:
    m = result["machine"]
    flags = ", ".join(m["flags"]) or "no flags that matter"
    versions = f"Python {m['python']}, PyTorch {m['torch']}, diffusers {m['diffusers']}"
    hardware = f"{m['cores']} cores of an {m['cpu']} ({flags}), {m['memory_gib']} GiB, {m['system']}"
    return f"{hardware}; {versions}; {result['date']}."


def _commands(results: Sequence[Result]) -> str:
    return "\n".join(["```sh", *(result["command"] for result in results), "python -m bench.peers.report", "```"])


def _about(result: Result) -> str:
    amounts = result["amounts"]
    loads = (
        f"{result['model'].capitalize()}, {result['steps']} steps, guidance {result['guidance_scale']:g}, its own "
        f"sampler; {_rounds(result)}. Saturated: {amounts['clients']} clients "
        f"({amounts['clients_of_one']} where one is served at a time), {amounts['turns']} requests each. Alone: "
        f"{amounts['alone']} requests. Poisson arrivals: for {amounts['poisson_s']:g} s, as shares of what the best "
        f"baseline had just served saturated; a contender that serves less than arrives is left out, since its "
        f"queue would only grow. "
        f"Burst: {amounts['burst']} at once."
    )
    facts = [_peer(name, peer) for name, peer in result["peers"].items()]
    for name, settings in result["ours"].items():
        facts.append(f"{name}: {', '.join(f'{key}={value}' for key, value in settings.items()) or 'as it comes'}.")
    used = [window["cores_of_others"] for window in _windows(result)]
    facts.append(f"Those at rest used {max(used):.1%} of a core at most, {sum(used) / len(used):.1%} in the mean.")
    return "\n".join([loads, "", *(f"- {fact}" for fact in facts)])


def _rounds(result: Result) -> str:
    """Said for what it is: the ratios of one round have whatever the machine did in it."""
    count = len(result["rounds"])
    return f"{count} rounds" if count > 1 else "one round, whose ratios have all of the machine's noise"


def _peer(name: str, peer: Mapping[str, Any]) -> str:
    layouts, best = peer["sweep"]["seconds"], peer["best_size"]
    layout = min(layouts, key=lambda each: float(layouts[each][str(best)]))
    return (
        f"{name.capitalize()} peer: best batch {best} of {', '.join(layouts[layout])}, weights "
        f"{layout.replace('_', ' ')}, {peer['threads']} threads, ready after {peer['start_s']:.0f} s."
    )


def _windows(result: Result) -> list[Mapping[str, Any]]:
    loads = [load for one in result["rounds"] for load in one["loads"].values()]
    return [window for load in loads for window in load["results"].values()]


def _throughput(result: Result) -> str:
    """Saturated: images per second of all, and ours over each of the others."""
    names = contenders(result, OURS, LOOP, BATCHED, ONE)
    rows = [
        (
            name,
            number(median(result, SATURATED, name, "images_per_s"), 2),
            *(
                _ratio(over(result, SATURATED, ours, name, "images_per_s")) if name != ours else ""
                for ours in contenders(result, OURS)
            ),
        )
        for name in names
        if any(map(math.isfinite, values(result, SATURATED, name, "images_per_s")))
    ]
    headings = ("saturated", "images/s", *(f"{ours}, over it" for ours in contenders(result, OURS)))
    return markdown_table(headings, rows)


def _latency(result: Result) -> str:
    """Mean and P99 of all under every other load, and over those of the best baseline there."""
    rows: list[tuple[str, ...]] = []
    for load in LATENCY_LOADS:
        best = {value: best_baseline(result, load, value) for value in ("mean_s", "p99_s")}
        for name in contenders(result, OURS, LOOP, BATCHED, ONE):
            if not any(map(math.isfinite, values(result, load, name, "mean_s"))):
                if name in overloaded(result, load):
                    rows.append((load, name, "saturated", "-", "-", "-", "-"))
                continue
            numbers = [number(median(result, load, name, value), 2) for value in ("mean_s", "p50_s", "p99_s")]
            compared = [_against(result, load, name, other, value) for value, other in best.items()]
            rows.append((load, name, *numbers, *compared))
    return markdown_table(("load", "", "mean s", "P50", "P99", "mean over the best baseline's", "P99"), rows)


def _against(result: Result, load: str, name: str, other: str | None, value: str) -> str:
    if other is None:
        return "-"
    return "best" if name == other else _ratio(over(result, load, name, other, value))


def _losses(result: Result) -> str:
    lost = [f"{load}, {name}: serves less than arrives" for load in POISSON for name in _ours_overloaded(result, load)]
    lost += [_loss(loss) for loss in losses(result)]
    if not lost:
        return f"{result['dtype']}: at nothing that was measured here."
    return "\n".join([f"{result['dtype']}:\n", *(f"- {each}" for each in lost)])


def _ours_overloaded(result: Result, load: str) -> list[str]:
    return [name for name in overloaded(result, load) if name in contenders(result, OURS)]


def _loss(loss: Loss) -> str:
    return f"{loss.load}, {loss.ours}: {_ratio(loss.ratio)} times the {_VALUES[loss.value]} of *{loss.other}*"


def _ratio(of: Ratio) -> str:
    if not math.isfinite(of.median):
        return "-"
    if len(of.per_round) == 1:
        return f"{of.median:.2f}"
    return f"{of.median:.2f} ({of.lower_quartile:.2f} to {of.upper_quartile:.2f})"


def write(files: Sequence[Path], out: Path) -> None:
    """Write the document of these results to `out`, and their pictures into the folder `pictures` beside it."""
    results = [json.loads(file.read_text()) for file in files]
    folder = out.parent / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for result in results:
        picture = folder / f"{out.stem}-{result['dtype']}.png"
        draw(result, picture)
        pictures[result["dtype"]] = f"pictures/{picture.name}"
    out.write_text(document(results, pictures))


def command(
    files: Annotated[list[Path] | None, typer.Argument(help="Results of bench.peers.")] = None,
    out: Path = DOCS / "benchmarks-peers.md",
) -> Path:
    found = files or sorted(RESULTS.glob("peers-*.json"))
    if not found:
        raise typer.BadParameter(f"no peers-*.json in {RESULTS}: run python -m bench.peers first", param_hint="files")
    write(found, out)
    return out


if __name__ == "__main__":
    run(command, show=str)
