"""The answers that the rehearsal's clients got: one per request, as a line of JSON, and checks of them."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from synerdiff.json_codec import JsonCodec

# Batches of another size round otherwise: float32 pictures differ by this much at most, of 255 levels.
LEVELS = 2


@dataclass(frozen=True)
class Answer:
    """One request's end. `number`: which of the load's requests; `images`: index -> file, as base64.

    `image_events` counts the events that brought one.
    """

    number: int
    job_id: str = ""
    error: str = ""
    images: Mapping[int, str] = field(default_factory=dict)
    image_events: int = 0

    def pixels(self) -> dict[int, npt.NDArray[np.int16]]:
        """The pictures by index."""
        files = {index: io.BytesIO(base64.b64decode(data)) for index, data in self.images.items()}
        return {i: np.asarray(Image.open(file).convert("RGB")).astype(np.int16) for i, file in files.items()}


# One answer a line.
LINES = JsonCodec(Answer, "answer")


def read(path: Path) -> list[Answer]:
    """The answers in a file, none where there is no file; a line still being written is left out."""
    if not path.exists():
        return []
    return [LINES.parse(line) for line in path.read_text().split("\n")[:-1]]


def errors(answers: Iterable[Answer]) -> list[str]:
    """The errors of failed requests."""
    return [f"request {answer.number}: {answer.error}" for answer in answers if answer.error]


def repeated(answers: Sequence[Answer]) -> list[str]:
    """Jobs that two requests share, and images that came more than once."""
    jobs = Counter(answer.job_id for answer in answers if answer.job_id)
    found = [f"job {job_id} answered {count} requests" for job_id, count in jobs.items() if count > 1]
    return found + [
        f"job {answer.job_id}: {answer.image_events} image events for {len(answer.images)} images"
        for answer in answers
        if answer.image_events != len(answer.images)
    ]


def compared(answers: Iterable[Answer], quiet: Iterable[Answer]) -> tuple[list[str], int]:
    """Pictures that are not those made alone of the same request: missing, or further off than rounding goes. And the
    largest difference of any pixel in levels of 255; 0 where nothing can be compared.
    """
    expected = {answer.number: answer.pixels() for answer in quiet}
    found, farthest = [], 0
    for answer in (answer for answer in answers if not answer.error):
        pictures, alone = answer.pixels(), expected[answer.number]
        if pictures.keys() != alone.keys():
            found.append(f"request {answer.number}: images {sorted(pictures)} instead of {sorted(alone)}")
            continue
        for index, picture in pictures.items():
            levels = int(np.abs(picture - alone[index]).max()) if picture.shape == alone[index].shape else 255
            farthest = max(farthest, levels)
            if levels > LEVELS:
                found.append(f"request {answer.number}, image {index}: {levels} levels off")
    return found, farthest
