"""From a job's events to picture files: shared by `generate`, `demo` and `jobs watch`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from synerdiff.client import AsyncClient, Event, Finished, GeneratedImage, ImageReady
from synerdiff.errors import SynerDiffError
from synerdiff_cli.console import EXIT_INVALID, err, fail, out
from synerdiff_cli.output_files import check_folder
from synerdiff_cli.pictures import SUFFIXES, default_path, numbered_path
from synerdiff_cli.progress_display import ProgressDisplay

_CANCEL_S = 3.0


@dataclass(frozen=True)
class Destination:
    """Where pictures go: to `output`, or into `folder` under a name made of `title` and the seed."""

    title: str
    folder: Path = Path()
    output: Path | None = None

    def path(self, image: GeneratedImage) -> Path:
        """The file of one picture."""
        if self.output is not None:
            return numbered_path(self.output, image.index)
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
