"""The load that the options of `synerdiff bench` ask for."""

import math
from dataclasses import dataclass
from pathlib import Path

from synerdiff.client.load.arrivals import bursts, from_file, poisson
from synerdiff.client.load.requests import Drawn, LoadRequest, Mix, prompts_of_lines, prompts_of_words
from synerdiff.client.load.sending import ClosedLoop, Load, OpenLoop
from synerdiff.errors import FieldViolation, InvalidRequest
from synerdiff_cli.deployment import BUNDLED_MODEL

_DEFAULT_CONCURRENCY = 8
_DEFAULT_REQUESTS = 100
_BUILT_IN_WORDS = BUNDLED_MODEL.parent / "core.txt"


@dataclass(frozen=True)
class Shape:
    """How requests come: from so many clients, at a rate, in bursts, or at the times of a file; one of them, or none
    for the default. `requests`, `seconds`: when a round ends. Raises InvalidRequest for excluding options."""

    concurrency: int | None = None
    rate: float | None = None
    burst: int | None = None
    every_s: float | None = None
    times: Path | None = None
    requests: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        ways = {"concurrency": self.concurrency, "rate": self.rate, "burst": self.burst, "times": self.times}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise _refused(given[0], f"there is also --{given[1]}; give one of --{', --'.join(ways)}")
        if self.every_s is not None and (self.burst is None or self.seconds is None):
            raise _refused("every-s", "needs --burst and --seconds")
        if self.requests is not None and (self.burst is not None or self.times is not None):
            raise _refused("requests", "is of no use with --burst and --times, which say how many there are")
        if self.seconds is not None and (self.times is not None or (self.burst is not None and self.every_s is None)):
            raise _refused("seconds", "is of no use with --times, nor with --burst without --every-s")

    def load(self, mix: Mix, seed: int) -> Load:
        """One round. Raises OSError, InvalidRequest."""
        number = self.requests if self.requests is not None or self.seconds is not None else _DEFAULT_REQUESTS
        if self.rate is not None:
            return OpenLoop(poisson(self.rate, mix, seed, seconds=self.seconds or math.inf, number=number))
        if self.burst is not None:
            times = math.ceil((self.seconds or 0) / self.every_s) if self.every_s else 1
            return OpenLoop(bursts(self.burst, mix, seed, every_s=self.every_s or 0.0, times=times))
        if self.times is not None:
            return OpenLoop(from_file(self.times, mix, seed))
        return ClosedLoop(Drawn(mix, seed, number), self.concurrency or _DEFAULT_CONCURRENCY, self.seconds)


def requests_of(load: Load) -> int | None:
    """How many requests a load has; None where its seconds decide."""
    if isinstance(load, OpenLoop):
        return len(load.arrivals)
    return load.requests.number if isinstance(load.requests, Drawn) else None


def mix_of(like: LoadRequest, prompts: Path | None, num_prompts: int | None) -> Mix:
    """Requests like `like`, with `num_prompts` of a file or the bundled model. Raises OSError, InvalidRequest."""
    if prompts is None and not _BUILT_IN_WORDS.exists():
        raise _refused("prompts", f"needed: {_BUILT_IN_WORDS}, which comes with the code, is not there")
    listed = prompts_of_words(_BUILT_IN_WORDS) if prompts is None else prompts_of_lines(prompts)
    return Mix(listed[:num_prompts], like)


def _refused(option: str, description: str) -> InvalidRequest:
    return InvalidRequest(FieldViolation(f"--{option}", description))
