"""The usual alternative against ours, in one run: a diffusers pipeline, plain, batched and compiled.

    python -m bench.peers [--dtype float32|bfloat16] [--rounds 4] [--skip off,auto] [--ours NAME:SETTING=VALUE,...]
    python -m bench.peers.report           # writes docs/benchmarks-peers.md from these results

Starts a pipeline that serves one request at a time, and those that wait in batches of its best size, once eager and
once compiled; and deployments of ours. Each round sends the same loads to one after the other while all others rest:
as many clients as keep every server busy; one client; Poisson arrivals at 70 and 90 % of the best baseline's throughput
just before (a server slower than the arrivals is left out); a burst. Beside them runs the bare loop over the
same pipeline, without a server. Writes bench/results/NAME.json after every round.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.command import ModelDirectory, ProfileFile, run, save, settings_of, some_of
from bench.peers.measuring import LOADS, POISSON, SATURATED, SKIPS, Amounts, Course, Field, started
from bench.peers.process import SIZES
from bench.serving import PROMPTS, SETTINGS
from synerdiff.client.load.requests import LoadRequest, Mix
from synerdiff_cli.deployment import BUNDLED_MODEL

# Twice the best size keeps a batching server from ever drawing fewer: a batch waits while another is drawn.
_CLIENTS_PER_BEST_SIZE = 2
_LEAST_CLIENTS = 32
_CLIENTS_OF_ONE = 4
EAGER = "synerdiff eager"
# With its defaults, and eager where those compile.
DEFAULT_OURS = {"synerdiff": {"compile": "auto"}, EAGER: {"compile": "off"}}
# Inductor's cache, and the logs of the peers; outside of the packages that are checked.
CACHE = Path(__file__).parents[2] / "out" / "peers"


async def measure(
    model: ModelDirectory = BUNDLED_MODEL,
    dtype: str = "float32",
    rounds: int = 4,
    loads: Annotated[str, typer.Option(help=f"By comma, of {', '.join(LOADS)}.")] = "",
    skip: Annotated[str, typer.Option(help="Ours skipping guidance: off, auto or both.")] = "",
    ours: Annotated[list[str] | None, typer.Option(metavar="NAME:SETTING=VALUE,...")] = None,
    profile: ProfileFile = None,
    peers: Annotated[str, typer.Option(help="eager, compiled or both by comma.")] = "",
    sizes: Annotated[str, typer.Option(help="Batch sizes that the peers try, by comma.")] = SIZES,
    threads: Annotated[int, typer.Option(help="CPU threads of the peers; 0: torch's own choice.")] = 0,
    steps: int = 20,
    guidance_scale: float = 5.0,
    clients: Annotated[int, typer.Option(help="Of the saturated load; 0: twice the best size, or 32.")] = 0,
    turns: Annotated[int, typer.Option(min=3, help="Requests of each of these clients.")] = 6,
    alone: Annotated[int, typer.Option(help="Requests one after the other.")] = 6,
    poisson_s: Annotated[float, typer.Option(help="Seconds of Poisson arrivals.")] = 30.0,
    burst: Annotated[int, typer.Option(help="Requests at once.")] = 64,
    warm_up_s: Annotated[float, typer.Option(help="Seconds of load on everybody before the rounds.")] = 15.0,
    settle_s: Annotated[float, typer.Option(help="Longest wait for work in the background to end.")] = 900.0,
    seed: int = 1,
    name: Annotated[str, typer.Option(help="Of the file under bench/results. Default: peers-DTYPE.")] = "",
) -> dict[str, Any]:
    listed = sorted(some_of(loads, LOADS, "--loads"), key=LOADS.index)  # Poisson arrivals are shares of the first
    if SATURATED not in listed and set(POISSON) & set(listed):
        raise typer.BadParameter(f"Poisson arrivals need {SATURATED} too", param_hint="--loads")
    ways = some_of(peers, ("eager", "compiled"), "--peers")
    settings = dict(map(own_settings, ours)) if ours else DEFAULT_OURS
    skips = some_of(skip, SKIPS, "--skip")
    model = model.resolve()
    asked = {"model": model, "dtype": dtype, "sizes": sizes, "threads": threads}
    asked |= {"steps": steps, "guidance_scale": guidance_scale}
    async with started(model, dtype, profile, ways, asked, settings, skips, CACHE) as (contenders, about):
        best = max((each["best_size"] for each in about.values()), default=0)
        clients = clients or max(_LEAST_CLIENTS, _CLIENTS_PER_BEST_SIZE * best)
        amounts = Amounts(clients, min(_CLIENTS_OF_ONE, clients), turns, alone, poisson_s, burst)
        mix = Mix(PROMPTS, LoadRequest("", 0, steps, guidance_scale))
        result: dict[str, Any] = {
            "model": model.name if model != BUNDLED_MODEL else "the bundled model",
            "dtype": dtype,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "amounts": vars(amounts),
            "peers": about,
            "ours": settings,
            "contenders": {contender.name: contender.about() for contender in contenders},
            "rounds": [],
        }
        everybody = Field(contenders, Course(listed, amounts, mix, seed, warm_up_s, settle_s))
        await everybody.warm_up()
        for number in range(rounds):
            result["rounds"].append(await everybody.round(number))
            save(name or f"peers-{dtype}", result)
    return result


def own_settings(text: str) -> tuple[str, dict[str, str]]:
    """A deployment of ours, NAME or NAME:SETTING=VALUE,... Raises typer.BadParameter."""
    name, _, rest = text.partition(":")
    return name, settings_of(filter(None, rest.split(",")), SETTINGS)


if __name__ == "__main__":
    run(measure, show=lambda result: f"{len(result['rounds'])} rounds")
