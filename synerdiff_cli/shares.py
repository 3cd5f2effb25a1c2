"""Splits of one device between the UNet and the VAE worker, as `--shares 70:30,60:40` gives them in percent.

On a CPU a share is a number of threads. On a GPU it is CUDA MPS's share of a client, set by a variable of each worker;
MPS lets a client lower its share, never raise it.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from synerdiff.host import usable_cores
from synerdiff.mps import DEFAULT_PIPE_DIRECTORY, THREAD_PERCENTAGE, device_ordinal, find_client
from synerdiff_cli.deployment import LocalOptions, OptionError

_SHARES = re.compile(r"\s*(\d{1,3}):(\d{1,3})\s*", re.ASCII)


class Shares(NamedTuple):
    """Percent of the device for either worker, 1 to 100 each; more than 100 together: they overlap."""

    unet: int
    vae: int

    def __str__(self) -> str:
        return f"{self.unet}:{self.vae}"


@dataclass(frozen=True)
class Split:
    """One way to run both workers, and the shares that come down to it. `fixed`: no item may give a worker more."""

    shares: tuple[Shares, ...]
    local: LocalOptions
    fixed: bool = False

    @property
    def label(self) -> str:
        """The shares as they were asked for."""
        return ", ".join(map(str, self.shares))


def parse_shares(text: str) -> tuple[Shares, ...]:
    """The splits of `--shares`, each once. Raises OptionError."""
    matches = [(part, _SHARES.fullmatch(part)) for part in text.split(",")]
    for part, match in matches:
        if not match or not all(1 <= int(number) <= 100 for number in match.groups()):
            raise OptionError(
                f"--shares: {part.strip()!r} is not UNET:VAE in percent from 1 to 100 each, as 70:30,60:40"
            )
    return tuple(dict.fromkeys(Shares(int(match[1]), int(match[2])) for _, match in matches if match))


def splits_of(local: LocalOptions, shares: Iterable[Shares], device: str) -> tuple[Split, ...]:
    """The splits to run for the shares on a `device` (cpu, cuda or cuda:N).

    Raises OptionError where they cannot be had: threads given as well, no MPS on a GPU, or an MPS that allows less.
    """
    if local.threads:
        raise OptionError("--shares: shares say how many threads a worker has; leave --threads out")
    return _on_gpu(local, shares, device) if device.startswith("cuda") else _on_cpu(local, shares)


def thread_counts(shares: Shares, cores: int) -> dict[str, int]:
    """CPU threads of each kind of worker: nearest to its share, at least one; over the cores only where shares are."""
    unet, vae = (max(1, round(cores * share / 100)) for share in shares)
    if sum(shares) <= 100 and cores > 1:
        unet = min(unet, cores - 1)
        vae = min(vae, cores - unet)
    return {"unet": unet, "vae": vae}


def _on_cpu(local: LocalOptions, shares: Iterable[Shares]) -> tuple[Split, ...]:
    by_counts: dict[tuple[int, ...], list[Shares]] = {}
    for split in shares:
        by_counts.setdefault(tuple(thread_counts(split, usable_cores()).values()), []).append(split)
    return tuple(
        Split(
            tuple(alike),
            replace(local, worker_threads=dict(zip(("unet", "vae"), counts, strict=True))),
            fixed=sum(counts) <= usable_cores(),
        )
        for counts, alike in by_counts.items()
    )


def _on_gpu(local: LocalOptions, shares: Iterable[Shares], device: str) -> tuple[Split, ...]:
    splits = tuple(shares)
    _check_mps_allows(splits, device, {name: value for name, value in os.environ.items() if name != THREAD_PERCENTAGE})
    return tuple(Split((split,), replace(local, worker_environment=_variables(split)), fixed=True) for split in splits)


def _variables(split: Shares) -> dict[str, dict[str, str]]:
    return {kind: {THREAD_PERCENTAGE: str(percent)} for kind, percent in split._asdict().items()}


def _check_mps_allows(splits: Iterable[Shares], device: str, environ: Mapping[str, str]) -> None:
    found = find_client(device_ordinal(device), environ)
    client = found.client
    if client is None:
        why = "; ".join(found.warnings) or f"there is no control daemon at {DEFAULT_PIPE_DIRECTORY}"
        raise OptionError(
            f"--shares: on {device} they need CUDA MPS, and {why}. `nvidia-cuda-mps-control -d` starts it"
        )
    for split in splits:
        if max(split) > client.thread_percent:
            raise OptionError(
                f"--shares: {split} is more than the {client.thread_percent} % that CUDA MPS allows every client here "
                f"({client.thread_source}); a client can only lower it. Where the daemon is yours, end its clients and "
                "`echo set_default_active_thread_percentage 100 | nvidia-cuda-mps-control`"
            )
