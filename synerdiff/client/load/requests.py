"""The requests of a load: the same for the same seed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import cast

from synerdiff.cards import Sampler
from synerdiff.client.options import GenerateOptions
from synerdiff.errors import FieldViolation, InvalidRequest

_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class LoadRequest:
    """One request of a load. None takes the model's or the server's default. Sizes in pixels."""

    prompt: str
    seed: int
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: Sampler | str | None = None
    width: int | None = None
    height: int | None = None
    negative_prompt: str = ""
    num_images: int = 1
    skip_cfg: bool | None = None
    model: str | None = None
    exact: bool | None = None

    def options(self) -> GenerateOptions:
        """The request as `AsyncClient.generate` takes it, beside its prompt."""
        return cast(GenerateOptions, {name: value for name, value in vars(self).items() if name != "prompt"})


@dataclass(frozen=True)
class Mix:
    """The distribution of requests. Each is like `like` with a prompt and a seed of its own. Fields with choices here
    take each with equal probability."""

    prompts: Sequence[str]
    like: LoadRequest = LoadRequest("", 0)
    steps: Sequence[int] = ()
    guidance_scales: Sequence[float] = ()
    samplers: Sequence[Sampler] = ()

    def draw(self, source: random.Random) -> LoadRequest:
        """The next request."""
        drawn = replace(self.like, prompt=source.choice(self.prompts), seed=source.randint(0, _LARGEST_SEED))
        if self.steps:
            drawn = replace(drawn, num_inference_steps=source.choice(self.steps))
        if self.guidance_scales:
            drawn = replace(drawn, guidance_scale=source.choice(self.guidance_scales))
        if self.samplers:
            drawn = replace(drawn, sampler=source.choice(self.samplers))
        return drawn


@dataclass(frozen=True)
class Drawn:
    """Requests of a mix, `number` of them or without end; the same in every iteration."""

    mix: Mix
    seed: int
    number: int | None = None

    def __iter__(self) -> Iterator[LoadRequest]:
        source = random.Random(self.seed)
        return islice((self.mix.draw(source) for _ in count()), self.number)


def prompts_of_words(path: Path) -> tuple[str, ...]:
    """A prompt for each word between bars in a file such as the bundled model's core.txt. Raises OSError."""
    words = path.read_text(encoding="utf-8").replace("\n", "").strip("|").split("|")
    return tuple(f"a {word}" for word in words)


def prompts_of_lines(path: Path) -> tuple[str, ...]:
    """The prompts of a file, one a line. Raises OSError, InvalidRequest for a file without any."""
    prompts = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not prompts:
        raise InvalidRequest(FieldViolation("prompts", f"{path}: no prompt"))
    return prompts
