"""What people would run instead against ours, in one run: a diffusers pipeline, plain, batched and compiled.

    python -m bench.peers [--dtype float32|bfloat16] [--rounds 4] [--skip off,auto] [--ours NAME:SETTING=VALUE,...]
    python -m bench.peers.report           # writes docs/benchmarks-peers.md from these results

Starts a pipeline that serves one request at a time, and those that wait in batches of its best size, once eager and
once compiled; and deployments of ours. Each round sends the same loads to one after the other while all others rest:
as many clients as keep everybody busy; one client; Poisson arrivals at 70 and 90 % of what the best baseline served
just before (who serves less than arrives is left out); a burst. Beside them runs the bare loop over the
same pipeline, without a server. Writes bench/results/NAME.json after every round.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from bench.arguments import some_of
from bench.peers.contenders import SKIPS, Wanted, started
from bench.peers.loads import LOADS, POISSON, SATURATED, Amounts
from bench.peers.measuring import Course, field
from bench.peers.sizes import SIZES, sizes_of
from bench.reporting import save
from bench.serving import PROMPTS, SETTINGS
from synerdiff.client.load.requests import LoadRequest, Mix
from synerdiff_cli.deployment import BUNDLED_MODEL

# Twice the best size keeps a batching server from ever drawing fewer: a batch waits while another is drawn.
_CLIENTS_PER_BEST_SIZE = 2
_LEAST_CLIENTS = 32
_CLIENTS_OF_ONE = 4
EAGER = "synerdiff eager"
# What inductor compiles, and the logs of the peers; outside of the packages that are checked.
CACHE = Path(__file__).parents[2] / "out" / "peers"


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Start everybody, and run the rounds."""
    wanted = Wanted(
        model=options.model.resolve(),
        dtype=options.dtype,
        compiled=options.peers,
        sizes=options.sizes,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance_scale,
        threads=options.threads,
        ours=dict(options.ours or default_ours()),
        skip=options.skip,
        profile=options.profile,
        cache=CACHE,
    )
    async with started(wanted) as (contenders, peers):
        course = course_of(options, [about["best_size"] for about in peers.values()])
        result: dict[str, Any] = {
            "command": "python -m bench.peers " + " ".join(sys.argv[1:]),
            "model": options.model.name if options.model != BUNDLED_MODEL else "the bundled model",
            "dtype": options.dtype,
            "steps": options.steps,
            "guidance_scale": options.guidance_scale,
            "amounts": vars(course.amounts),
            "peers": peers,
            "ours": wanted.ours,
            "contenders": {contender.name: contender.about() for contender in contenders},
            "rounds": [],
        }
        async with field(contenders, course) as everybody:
            await everybody.warm_up(say)
            for number in range(course.rounds):
                result["rounds"].append(await everybody.round(number, say))
                save(options.name or f"peers-{options.dtype}", result)
    return result


def course_of(options: argparse.Namespace, best_sizes: list[int]) -> Course:
    """What the options ask to be measured."""
    clients = options.clients or max(_LEAST_CLIENTS, _CLIENTS_PER_BEST_SIZE * max(best_sizes, default=0))
    amounts = Amounts(
        clients=clients,
        clients_of_one=min(_CLIENTS_OF_ONE, clients),
        turns=options.turns,
        alone=options.alone,
        poisson_s=options.poisson_s,
        burst=options.burst,
    )
    like = LoadRequest("", 0, options.steps, options.guidance_scale)
    return Course(
        loads=[name for name in LOADS if name in options.loads],
        rounds=options.rounds,
        amounts=amounts,
        mix=Mix(PROMPTS, like),
        seed=options.seed,
        capacity=options.capacity,
        warm_up_s=options.warm_up_s,
        settle_s=options.settle_s,
    )


def default_ours() -> dict[str, dict[str, str]]:
    """As it comes, and eager where it compiles."""
    return {"synerdiff": {"compile": "auto"}, EAGER: {"compile": "off"}}


def our_settings(text: str) -> tuple[str, dict[str, str]]:
    """A deployment of ours, NAME or NAME:SETTING=VALUE,... Raises argparse's own error."""
    name, _, rest = text.partition(":")
    settings = dict(pair.partition("=")[::2] for pair in rest.split(",") if pair)
    for setting in settings:
        if setting not in SETTINGS:
            raise argparse.ArgumentTypeError(f"{setting!r} is no setting of scheduler or workers")
    return name, settings


def say(line: str) -> None:
    """Tell whoever watches."""
    print(line, file=sys.stderr, flush=True)


def command_line() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL, help="model directory in diffusers layout")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--loads", type=some_of(*LOADS), default=list(LOADS), help=f"by comma, of {', '.join(LOADS)}")
    parser.add_argument("--skip", type=some_of(*SKIPS), default=list(SKIPS), help="ours skipping guidance: off, auto")
    parser.add_argument("--ours", type=our_settings, action="append", metavar="NAME:SETTING=VALUE,...")
    parser.add_argument("--profile", type=Path, help="profile that ours plan by; default: none")
    parser.add_argument(
        "--peers",
        type=lambda text: [name == "compiled" for name in some_of("eager", "compiled")(text)],
        default=[False, True],
        help="eager, compiled or both by comma",
    )
    parser.add_argument("--sizes", type=sizes_of, default=SIZES, help="batch sizes that the peers try, by comma")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the peers; 0: torch's own choice")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--clients", type=int, help="of the saturated load; default: twice the best size, or 32")
    parser.add_argument("--turns", type=int, default=6, help="requests of each of these clients; 3 at least")
    parser.add_argument("--alone", type=int, default=6, help="requests one after the other")
    parser.add_argument("--poisson-s", type=float, default=30.0, help="seconds of Poisson arrivals")
    parser.add_argument("--burst", type=int, default=64, help="requests at once")
    parser.add_argument("--capacity", type=float, help="images/s that Poisson loads are shares of; default: measured")
    parser.add_argument("--warm-up-s", type=float, default=15.0, help="seconds of load on everybody before the rounds")
    parser.add_argument("--settle-s", type=float, default=900.0, help="longest wait for work in the background to end")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="", help="of the file under bench/results; default: peers-DTYPE")
    return parser


def main() -> int:
    """Parse the command line and measure. The exit status is 1 when a request failed."""
    options = command_line().parse_args()
    if options.capacity is None and SATURATED not in options.loads and set(POISSON) & set(options.loads):
        command_line().error(f"--loads: Poisson arrivals need {SATURATED} too, or --capacity")
    result = asyncio.run(measure(options))
    windows = [w for each in result["rounds"] for load in each["loads"].values() for w in load["results"].values()]
    return int(any(window["errors"] for window in windows))


if __name__ == "__main__":
    sys.exit(main())
