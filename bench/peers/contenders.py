"""Who is compared: every way to serve one peer's pipeline, the bare loop over it, and deployments of ours."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.systems import Peer, System, own_system, peer

ONE, BATCHED, LOOP, OURS = "one at a time", "batched", "bare loop", "ours"
SKIPS: dict[str, bool | None] = {"off": False, "auto": None}


@dataclass(frozen=True)
class Contender:
    """One row of the tables. `kind`: ONE, BATCHED, LOOP or OURS; `address`: of its server, `peer`: of a bare loop."""

    name: str
    kind: str
    system: System
    address: str = ""
    peer: Peer | None = None
    skip_cfg: bool | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether it is a server that people would write."""
        return self.kind in (ONE, BATCHED)

    def about(self) -> dict[str, Any]:
        return {"kind": self.kind, "system": self.system.name}


@dataclass(frozen=True)
class Wanted:
    """What is to be started. `compiled`: which peers, eager or compiled; `ours`: settings by name; `skip`: of SKIPS."""

    model: Path
    dtype: str
    compiled: Sequence[bool]
    sizes: Sequence[int]
    num_inference_steps: int
    guidance_scale: float
    threads: int
    ours: Mapping[str, Mapping[str, str]]
    skip: Sequence[str]
    profile: Path | None
    cache: Path


@contextlib.asynccontextmanager
async def started(wanted: Wanted) -> AsyncIterator[tuple[list[Contender], dict[str, Any]]]:
    """Everybody, one started after the other, and what the peers say of themselves."""
    async with contextlib.AsyncExitStack() as stack:
        contenders: list[Contender] = []
        about: dict[str, Any] = {}
        wanted.cache.mkdir(parents=True, exist_ok=True)
        for compiled in wanted.compiled:
            name = "compiled" if compiled else "eager"
            log = wanted.cache / f"peer-{name}-{wanted.dtype}.log"
            each = await stack.enter_async_context(peer(name, peer_arguments(wanted, compiled), wanted.cache, log))
            about[name] = each.about
            contenders += _of_peer(each, name)
        for name, settings in wanted.ours.items():
            of_one = own_system(name, settings, wanted.profile, wanted.dtype, wanted.model)
            system, address = await stack.enter_async_context(of_one)
            contenders += [
                Contender(f"{name}, skipping {skip}", OURS, system, address, skip_cfg=SKIPS[skip])
                for skip in wanted.skip
            ]
        yield contenders, about


def _of_peer(each: Peer, name: str) -> list[Contender]:
    return [
        Contender(f"{ONE}, {name}", ONE, each.system, each.about["one"]),
        Contender(f"{BATCHED}, {name}", BATCHED, each.system, each.about["batched"]),
        Contender(f"{LOOP}, {name}", LOOP, each.system, peer=each),
    ]


def peer_arguments(wanted: Wanted, compiled: bool) -> list[str]:
    """The command line of a peer's process."""
    arguments = ["--model", str(wanted.model), "--dtype", wanted.dtype, "--threads", str(wanted.threads)]
    arguments += ["--steps", str(wanted.num_inference_steps), "--guidance-scale", str(wanted.guidance_scale)]
    arguments += ["--sizes", ",".join(map(str, wanted.sizes))]
    return arguments + ["--compiled"] * compiled
