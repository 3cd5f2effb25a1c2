"""A deployment under settings of its own, an open-loop load on it, and what came of both.

Arrival times are drawn ahead from a seed and kept to whatever the system does: latency counts from when a request was
due, so a system that falls behind cannot hide it.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from services.scheduler.settings import SchedulerSettings
from synerdiff import profiles
from synerdiff.cards import Sampler
from synerdiff.client import AsyncClient
from synerdiff.errors import SynerDiffError
from synerdiff.rpc import open_channel
from synerdiff.v1 import operations_pb2, operations_pb2_grpc
from synerdiff_cli.deployment import BUNDLED_MODEL, LocalOptions, ModelSource
from synerdiff_cli.running import running

SAMPLERS = (Sampler.DDIM, Sampler.EULER, Sampler.DPMSOLVER_MULTISTEP)
PROFILE_KNOWN_WITHIN_S = 15.0


@dataclass(frozen=True)
class Arrival:
    """A request for one image of the model's native size, due `at_s` after the load's start."""

    at_s: float
    prompt: str
    seed: int
    num_inference_steps: int
    guidance_scale: float = 4.0
    sampler: Sampler = Sampler.DDIM
    skip_cfg: bool | None = None


@dataclass(frozen=True)
class Served:
    """A finished request. `end_to_end_s` from when it was due, `decode_s` from its last step to its image stored."""

    arrival: Arrival
    end_to_end_s: float
    decode_s: float
    skipped_steps: int


@dataclass(frozen=True)
class Outcome:
    """What came of a load. `seconds` from its first arrival to its last end, `items` as its trace has them."""

    served: tuple[Served, ...]
    errors: tuple[str, ...]
    seconds: float
    items: "tuple[ItemRun, ...]"
    thresholds: tuple[tuple[float, float], ...]

    @property
    def images_per_s(self) -> float:
        """Throughput over the whole load."""
        return len(self.served) / self.seconds


@dataclass(frozen=True)
class ItemRun:
    """An item that ran in step and as planned, with a predicted time: measured over predicted, and when it ended."""

    kind: str
    ratio: float
    end_s: float


def poisson(
    rate_per_s: float, seconds: float, seed: int, steps: Sequence[int] = (8, 12, 20, 20), **options: Any
) -> tuple[Arrival, ...]:
    """Requests of mixed steps and samplers arriving at random for `seconds`, the same for the same arguments."""
    draw = random.Random(f"{rate_per_s:.6f} {seconds} {seed}")
    arrivals, at_s = [], draw.expovariate(rate_per_s)
    while at_s < seconds:
        arrivals.append(
            Arrival(
                at_s,
                prompt=f"a {draw.choice(_subjects())}",
                seed=draw.randrange(2**32),
                num_inference_steps=draw.choice(steps),
                guidance_scale=draw.choice((3.0, 4.0, 5.0)),
                sampler=draw.choice(SAMPLERS),
                **options,
            )
        )
        at_s += draw.expovariate(rate_per_s)
    return tuple(arrivals)


def burst(count: int, seed: int, num_inference_steps: int = 20) -> tuple[Arrival, ...]:
    """Requests that differ in prompt and seed alone, all due at once."""
    draw = random.Random(seed)
    return tuple(
        Arrival(0.0, f"a {draw.choice(_subjects())}", draw.randrange(2**32), num_inference_steps) for _ in range(count)
    )


@contextlib.asynccontextmanager
async def deployment(
    settings: Mapping[str, str], profile: Path | None = None, dtype: str = "float32"
) -> AsyncIterator[str]:
    """A scheduler with `settings`, a UNet and a VAE worker of the bundled model; yields the scheduler's address.

    `profile`: a file that its domain is to plan by. Raises ValueError for a setting that the scheduler does not have,
    RuntimeError where it does not take the profile.
    """
    for name in settings:
        if name not in SchedulerSettings.model_fields:
            raise ValueError(f"{name}: no setting of the scheduler")
    variables = {f"SYNERDIFF_{name.upper()}": value for name, value in settings.items()}
    with tempfile.TemporaryDirectory() as folder, _environment(variables):
        async with running(_local_options(Path(folder), profile, dtype)) as deployed:
            address = deployed.deployment.addresses[0]
            if profile:
                await _takes_profile(address, profile)
            yield address


async def serve(address: str, arrivals: Sequence[Arrival]) -> Outcome:
    """Send every request when it is due and wait for all of them."""
    served: list[Served] = []
    errors: list[str] = []
    began_unix_us = time.time() * 1e6
    async with AsyncClient(address, patience_s=60.0) as client:
        began = time.monotonic()

        async def one(arrival: Arrival) -> None:
            await asyncio.sleep(began + arrival.at_s - time.monotonic())
            try:
                result = await client.generate(
                    arrival.prompt,
                    seed=arrival.seed,
                    num_inference_steps=arrival.num_inference_steps,
                    guidance_scale=arrival.guidance_scale,
                    sampler=arrival.sampler,
                    skip_cfg=arrival.skip_cfg,
                )
            except SynerDiffError as error:
                errors.append(f"{type(error).__name__}: {error}")
                return
            end_to_end_s = time.monotonic() - began - arrival.at_s
            skipped = sum(map(len, result.skipped_steps.values()))
            served.append(Served(arrival, end_to_end_s, result.timings.decode_s, skipped))

        await asyncio.gather(*map(one, arrivals))
        seconds = time.monotonic() - began - min(arrival.at_s for arrival in arrivals)
    events = [event for event in await trace_events(address) if event.get("ts", 0) >= began_unix_us]
    thresholds = tuple(
        ((event["ts"] - began_unix_us) / 1e6, event["args"]["threshold"])
        for event in events
        if event["ph"] == "C" and event["name"] == "threshold"
    )
    return Outcome(tuple(served), tuple(errors), seconds, item_runs(events, began_unix_us), thresholds)


async def trace_events(address: str) -> list[dict[str, Any]]:
    """The last ticks of a running scheduler, as trace events."""
    async with open_channel(address) as channel:
        stub = operations_pb2_grpc.OperationsStub(channel)
        reply = await stub.GetTrace(operations_pb2.GetTraceRequest(), timeout=60)
    events: list[dict[str, Any]] = json.loads(reply.trace_json)["traceEvents"]
    return events


def item_runs(events: Sequence[Mapping[str, Any]], began_unix_us: float) -> tuple[ItemRun, ...]:
    """The items of a trace that can be compared with their prediction, each once, in order of their ends."""
    runs: dict[tuple[int, int, int], ItemRun] = {}
    for event in events:
        args = event.get("args", {})
        if not (args.get("intact") and args.get("in_step") and args.get("predicted_ms")):
            continue
        both = args["rows"] and args["decodes"]
        end_s = (event["ts"] + event["dur"] - began_unix_us) / 1e6
        run = ItemRun("beside" if both else event["cat"], args["measured_ms"] / args["predicted_ms"], end_s)
        runs[event["pid"], args["tick"], args["place"]] = run
    return tuple(sorted(runs.values(), key=lambda run: run.end_s))


def add_only(parser: argparse.ArgumentParser, configurations: Collection[str]) -> None:
    """Let a bench be told by `--only` which of its configurations to run."""

    def chosen(names: str) -> list[str]:
        listed = [name.strip() for name in names.split(",")]
        for name in listed:
            if name not in configurations:
                raise argparse.ArgumentTypeError(f"{name!r} is none of: {', '.join(configurations)}")
        return listed

    parser.add_argument("--only", type=chosen, help="configurations by comma; default: all")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Let a bench be told the scheduler's settings: `--set NAME=VALUE`, any number of them, in `options.settings`."""

    def pair(text: str) -> tuple[str, str]:
        name, separator, value = text.partition("=")
        if not separator or name not in SchedulerSettings.model_fields:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE of a setting of the scheduler")
        return name, value

    parser.add_argument(
        "--set", dest="settings", type=pair, action="append", default=[], metavar="NAME=VALUE", help="a setting"
    )


def _local_options(folder: Path, profile: Path | None, dtype: str) -> LocalOptions:
    absolute = profile.resolve() if profile else None
    return LocalOptions(folder, (ModelSource("emoji", BUNDLED_MODEL),), dtype=dtype, profile=absolute)


@cache
def _subjects() -> list[str]:
    return (BUNDLED_MODEL.parent / "core.txt").read_text().replace("\n", "").strip("|").split("|")


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Any:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


async def _takes_profile(address: str, profile: Path) -> None:
    digest = profiles.load(profile).digest
    async with open_channel(address) as channel:
        stub = operations_pb2_grpc.OperationsStub(channel)
        give_up_at = time.monotonic() + PROFILE_KNOWN_WITHIN_S
        while time.monotonic() < give_up_at:
            status = await stub.GetStatus(operations_pb2.GetStatusRequest(), timeout=10)
            if digest in {planning.profile_digest for planning in status.planning}:
                return
            await asyncio.sleep(0.1)
    raise RuntimeError(f"the scheduler did not take {profile} up within {PROFILE_KNOWN_WITHIN_S:g} s; its log says why")
