"""A page of docs/ from the results of `python -m bench.peers`.

    python -m bench.peers.report [FILE ...] [--out docs/benchmarks-peers.md]

Without files: every peers-*.json under bench/results. Pictures go to docs/pictures. Every number comes from the files.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from bench.command import RESULTS, markdown_table, number, run
from bench.peers.measuring import ALONE, BATCHED, BURST, LOOP, ONE, OURS, POISSON, SATURATED
from synerdiff.client.load.summary import Ratio, ratio
from synerdiff_cli.bench_display import draw_latencies

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Result = Mapping[str, Any]

# Loads whose latencies are compared with the best baseline's.
LATENCY_LOADS = (ALONE, *POISSON, BURST)


class Loss(NamedTuple):
    """A ratio on the wrong side of 1."""

    load: str
    ours: str
    value: str
    other: str
    ratio: Ratio

    @property
    def factor(self) -> float:
        return 1 / self.ratio.median if self.value == "images_per_s" else self.ratio.median


def contenders(result: Result, *kinds: str) -> list[str]:
    """The names of the contenders of these kinds, in the order they were started in."""
    return [name for name, about in result["contenders"].items() if about["kind"] in kinds]


def windows(result: Result, load: str, name: str) -> list[Mapping[str, Any] | None]:
    """A contender's numbers under a load, a round each; None where it was left out."""
    return [one["loads"].get(load, {}).get("results", {}).get(name) for one in result["rounds"]]


def values(result: Result, load: str, name: str, value: str) -> list[float]:
    """A number of a contender under a load, a round each; NaN where it was left out or served nothing."""
    found = [window[value] if window else None for window in windows(result, load, name)]
    return [math.nan if number is None else float(number) for number in found]


def median(result: Result, load: str, name: str, value: str) -> float:
    """The median of the rounds; NaN where there is none."""
    known = [number for number in values(result, load, name, value) if math.isfinite(number)]
    return statistics.median(known) if known else math.nan


def over(result: Result, load: str, ours: str, other: str, value: str) -> Ratio:
    """One contender's number over another's, round by round."""
    return ratio(values(result, load, ours, value), values(result, load, other, value))


def best_baseline(result: Result, load: str, value: str) -> str | None:
    """The best baseline server of those in as many rounds as any; None where none got the load."""
    found = {name: values(result, load, name, value) for name in contenders(result, ONE, BATCHED)}
    rounds = {name: sum(map(math.isfinite, numbers)) for name, numbers in found.items()}
    most = max(rounds.values(), default=0)
    known = {name: median(result, load, name, value) for name in found if most and rounds[name] == most}
    if not known:
        return None
    return max(known, key=known.__getitem__) if value == "images_per_s" else min(known, key=known.__getitem__)


def overloaded(result: Result, load: str, *kinds: str) -> list[str]:
    """Who was left out of a load in every round, since it serves less than arrives there."""
    if load not in POISSON or not any(load in one["loads"] for one in result["rounds"]):
        return []
    servers = contenders(result, *(kinds or (OURS, BATCHED, ONE)))
    return [name for name in servers if not any(map(math.isfinite, values(result, load, name, "mean_s")))]


def losses(result: Result) -> list[Loss]:
    """Everything in which ours are worse, the worst first: throughput against every other way to serve, and latency
    against the best baseline, of one request also against the bare loops."""
    compared: list[tuple[str, str, str | None]] = [
        (SATURATED, "images_per_s", other) for other in contenders(result, ONE, BATCHED, LOOP)
    ]
    compared += [
        (load, value, best_baseline(result, load, value)) for load in LATENCY_LOADS for value in ("mean_s", "p99_s")
    ]
    compared += [(ALONE, "mean_s", other) for other in contenders(result, LOOP)]
    found = [
        Loss(load, ours, value, other, over(result, load, ours, other, value))
        for ours in contenders(result, OURS)
        for load, value, other in compared
        if other
    ]
    return sorted((loss for loss in found if loss.factor > 1), key=lambda loss: -loss.factor)


def draw(result: Mapping[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    shown = [
        load for load in (*reversed(list(POISSON)), BURST) if any(load in one["loads"] for one in result["rounds"])
    ]
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    _draw_throughput(axes[0], result)
    for place, load in zip(axes[1:], shown, strict=True):
        latencies = {
            name: [each for window in windows(result, load, name) if window for each in window["latencies_s"]]
            for name in contenders(result, OURS, BATCHED, ONE)
        }
        draw_latencies(place, {name: each for name, each in latencies.items() if each})
        place.set_title(load, fontsize=10)
    figure.suptitle(f"{result['dtype']}, {result['machine']['cpu']}, {result['date']}", fontsize=10)
    figure.savefig(path, dpi=90)


def _draw_throughput(axes: "Axes", result: Mapping[str, Any]) -> None:
    """A bar at the median of each contender, a dot for every round."""
    names = contenders(result, ONE, BATCHED, LOOP, OURS)
    for place, name in enumerate(names):
        found = sorted(values(result, SATURATED, name, "images_per_s"))
        if found:
            axes.barh(place, found[len(found) // 2], color="C0" if name in contenders(result, OURS) else "#bbbbbb")
            axes.plot(found, [place] * len(found), "k.", markersize=4)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("images per second, saturated")


DOCS = Path(__file__).parents[2] / "docs"

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
    parts = [_HEAD, "## Where and how", *dict.fromkeys(map(_machine, results)), _commands(results)]
    for result in results:
        parts.append(f"## {result['dtype']}")
        parts.append(_about(result))
        if pictures and result["dtype"] in pictures:
            parts.append(f"![{result['dtype']}]({pictures[result['dtype']]})")
        parts += [_throughput(result), _latency(result)]
    parts += ["## What we lose at", *(_losses(result) for result in results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _machine(result: Result) -> str:
    m = result["machine"]
    flags = ", ".join(m["flags"]) or "no flags that matter"
    versions = f"Python {m['python']}, PyTorch {m['torch']}, diffusers {m['diffusers']}"
    hardware = f"{m['cores']} cores of an {m['cpu']} ({flags}), {m['memory_gib']} GiB, {m['system']}"
    return f"{hardware}; {versions}; {result['date']}."


def _commands(results: Sequence[Result]) -> str:
    return "\n".join(["```sh", *(result["command"] for result in results), "python -m bench.peers.report", "```"])


def _about(result: Result) -> str:
    amounts, count = result["amounts"], len(result["rounds"])
    rounds = f"{count} rounds" if count > 1 else "one round, whose ratios have all of the machine's noise"
    how = (
        f"{result['model'].capitalize()}, {result['steps']} steps, guidance {result['guidance_scale']:g}, its own "
        f"sampler; {rounds}. Saturated: {amounts['clients']} clients "
        f"({amounts['clients_of_one']} where one is served at a time), {amounts['turns']} requests each. Alone: "
        f"{amounts['alone']} requests. Poisson arrivals: for {amounts['poisson_s']:g} s, as shares of what the best "
        f"baseline had just served saturated; a contender that serves less than arrives is left out, since its "
        f"queue would only grow. "
        f"Burst: {amounts['burst']} at once."
    )
    facts = [_peer(name, peer) for name, peer in result["peers"].items()]
    for name, settings in result["ours"].items():
        facts.append(f"{name}: {', '.join(f'{key}={value}' for key, value in settings.items()) or 'as it comes'}.")
    loads = [load for one in result["rounds"] for load in one["loads"].values()]
    used = [window["cores_of_others"] for load in loads for window in load["results"].values()]
    facts.append(f"Those at rest used {max(used):.1%} of a core at most, {sum(used) / len(used):.1%} in the mean.")
    return "\n".join([how, "", *(f"- {fact}" for fact in facts)])


def _peer(name: str, peer: Mapping[str, Any]) -> str:
    layouts, best = peer["sweep"]["seconds"], peer["best_size"]
    layout = min(layouts, key=lambda each: float(layouts[each][str(best)]))
    return (
        f"{name.capitalize()} peer: best batch {best} of {', '.join(layouts[layout])}, weights "
        f"{layout.replace('_', ' ')}, {peer['threads']} threads, ready after {peer['start_s']:.0f} s."
    )


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
    lost = [f"{load}, {name}: serves less than arrives" for load in POISSON for name in overloaded(result, load, OURS)]
    lost += [_loss(loss) for loss in losses(result)]
    if not lost:
        return f"{result['dtype']}: at nothing that was measured here."
    return "\n".join([f"{result['dtype']}:\n", *(f"- {each}" for each in lost)])


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
