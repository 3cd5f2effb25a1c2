"""Progress of a job on a terminal: a bar per image, the place in the queue, and the latest preview."""

from collections.abc import Iterable

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from synerdiff.client import Event, Finished, ImageReady, Queued, Started
from synerdiff.client import Progress as StepProgress
from synerdiff_cli.console import err
from synerdiff_cli.pictures import terminal_picture


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
        """The bar of image `index`; made here for a job whose number of images was not known."""
        while index >= len(self._bars):
            self._titles.append(self._title(len(self._bars), index + 1))
            self._bars.append(self.add_task("", total=None))
        return self._bars[index]

    @staticmethod
    def _title(index: int, count: int) -> str:
        return f"picture {index}: " if count > 1 else ""
