"""From a job's events to picture files: shared by `generate`, `demo` and `jobs`."""

import asyncio
import contextlib
import re
import unicodedata
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.color import Color
from rich.console import RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.segment import Segment, Segments
from rich.style import Style

from synerdiff.client import AsyncClient, Event, Finished, GeneratedImage, ImageReady, Queued, Started
from synerdiff.client import Progress as StepProgress
from synerdiff.errors import SynerDiffError
from synerdiff_cli.console import EXIT_INVALID, check_folder, err, fail, out

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_SLUG_LENGTH = 48
_CANCEL_S = 3.0

Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="File or folder to write to. Default: PROMPT-SEED.png.")
]


def slug(prompt: str) -> str:
    """`prompt` as a file name: lower-case letters, digits and dashes, never empty."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain)[:_SLUG_LENGTH].strip("-")
    return words or "picture"


def default_path(prompt: str, seed: int, suffix: str, folder: Path) -> Path:
    """A new file in `folder` named after prompt and seed; a number is added rather than a file overwritten."""
    stem = f"{slug(prompt)}-{seed}"
    path = folder / f"{stem}{suffix}"
    number = 2
    while path.exists():
        path = folder / f"{stem}-{number}{suffix}"
        number += 1
    return path


def terminal_picture(picture: Image.Image, columns: int = 32) -> Segments:
    """`picture` in half-block characters: each stands for two pixels, one above the other."""
    rows = max(1, round(columns * picture.height / picture.width / 2))
    rgb = picture.convert("RGB").resize((columns, rows * 2), Image.Resampling.BOX).tobytes()

    def colour(x: int, y: int) -> Color:
        at = 3 * (y * columns + x)
        return Color.from_rgb(*rgb[at : at + 3])

    segments: list[Segment] = []
    for y in range(0, 2 * rows, 2):
        segments += [Segment("▀", Style(color=colour(x, y), bgcolor=colour(x, y + 1))) for x in range(columns)]
        segments.append(Segment.line())
    return Segments(segments)


class ProgressDisplay(Progress):
    """`with ProgressDisplay(num_images) as display`, then `display.show(event)`. Shows nothing without a terminal."""

    def __init__(self, num_images: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._preview: RenderableType | None = None
        super().__init__(*columns, console=err, disable=not err.is_terminal, transient=True)
        self._titles = [self._title(i, num_images) for i in range(num_images)]
        self._bars: list[TaskID] = [self.add_task(f"{title}asking", total=None) for title in self._titles]

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, and below them the latest preview."""
        yield from super().get_renderables()
        if self._preview is not None:
            yield self._preview

    def show(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Queued):
            self._describe_all(f"waiting, {event.position} ahead" if event.position else "waiting, next in line")
        elif isinstance(event, Started):
            self._describe_all("preparing")
        elif isinstance(event, StepProgress):
            self._show_step(event)
        elif isinstance(event, ImageReady):
            bar = self._bar(event.image.index)
            self.update(bar, completed=self.tasks[self.task_ids.index(bar)].total or 0)
            self._describe(event.image.index, "done")
        elif isinstance(event, Finished):
            self._preview = None

    def _show_step(self, event: StepProgress) -> None:
        stage = "decoding" if event.step == event.num_inference_steps else "denoising"
        self._describe(event.index, stage)
        self.update(self._bar(event.index), completed=event.step, total=event.num_inference_steps)
        if event.preview is not None and event.index == 0:
            self._preview = terminal_picture(event.preview)

    def _describe_all(self, what: str) -> None:
        for index in range(len(self._bars)):
            self._describe(index, what)

    def _describe(self, index: int, what: str) -> None:
        self.update(self._bar(index), description=f"{self._titles[index]}{what}")

    def _bar(self, index: int) -> TaskID:
        """The bar of image `index`; made here if the job's number of images was not known."""
        while index >= len(self._bars):
            self._titles.append(self._title(len(self._bars), index + 1))
            self._bars.append(self.add_task("", total=None))
        return self._bars[index]

    @staticmethod
    def _title(index: int, count: int) -> str:
        return f"picture {index}: " if count > 1 else ""


@dataclass(frozen=True)
class Destination:
    """Where pictures go: to `output`, or into `folder` under a name made of `title` and the seed."""

    title: str
    folder: Path = Path()
    output: Path | None = None

    def path(self, image: GeneratedImage) -> Path:
        """The file of one picture."""
        if self.output is not None:  # the others are "name-INDEX.png"
            number = f"-{image.index}" if image.index else ""
            return self.output.with_name(f"{self.output.stem}{number}{self.output.suffix}")
        return default_path(self.title, image.seed, f".{image.format.name.lower().replace('jpeg', 'jpg')}", self.folder)


def destination(title: str, output: Path | None) -> Destination:
    """Where the pictures go for the `-o` given, a file or a folder. Exits where they cannot."""
    if output is None or output.is_dir():
        return Destination(title, folder=output or Path())
    if output.suffix.lower() not in SUFFIXES:
        fail(f"-o: {output} has no suffix of a picture file: one of {', '.join(SUFFIXES)}", EXIT_INVALID)
    check_folder("-o", output)
    return Destination(title, output=output)


async def save_pictures(
    client: AsyncClient,
    events: AsyncIterator[Event],
    where: Destination,
    *,
    num_images: int = 1,
    cancel_on_interrupt: bool = True,
) -> list[Path]:
    """Follow a job (`num_images` bars), write each picture, return the files. Raises the job's error, and OSError."""
    paths: list[Path] = []
    job_id = ""
    try:
        with ProgressDisplay(num_images) as display:
            async for event in events:
                job_id = event.job_id
                display.show(event)
                if isinstance(event, ImageReady):
                    paths.append(_save(event.image, where))
                if isinstance(event, Finished):
                    _summarise(event)
    except asyncio.CancelledError:
        if job_id and cancel_on_interrupt:
            await _cancel(client, job_id)
        raise
    return paths


def _save(image: GeneratedImage, where: Destination) -> Path:
    path = image.save(where.path(image))
    if image.flagged:
        err.print(f"[yellow]{path}: the model's safety checker objected; the picture is black[/]")
    out.print(str(path), markup=False)
    return path


def _summarise(event: Finished) -> None:
    for warning in event.warnings:
        err.print(f"[yellow]warning:[/] {escape(warning)}")
    t = event.timings
    err.print(
        f"[dim]job {event.job_id}: waited {t.queue_s:.2f} s, encoded in {t.encode_s:.2f} s, "
        f"denoised in {t.denoise_s:.2f} s, decoded in {t.decode_s:.2f} s[/]"
    )


async def _cancel(client: AsyncClient, job_id: str) -> None:
    with contextlib.suppress(SynerDiffError, TimeoutError):
        await asyncio.wait_for(client.cancel(job_id), _CANCEL_S)
        err.print(f"job {job_id} is cancelled")
