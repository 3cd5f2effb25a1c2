"""The events of a job -> the events of OpenAI's image stream."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from services.gateway import sse
from services.gateway.errors import api_error
from services.gateway.images.answers import completed_event, job_of, partial_event
from services.gateway.images.drawing import Drawing
from services.gateway.images.files import Files
from synerdiff.client import Event, Finished, GeneratedImage, ImageReady, Progress
from synerdiff.errors import SynerDiffError


async def image_stream(
    drawing: Drawing, first: Event, events: AsyncGenerator[Event, None], files: Files
) -> AsyncGenerator[bytes, None]:
    """OpenAI's events for `first` and what follows it. An error becomes the stream's last event.

    A picture is told once the next thing has happened, so that the last one can say how the job ended.
    """
    previews: Counter[int] = Counter()
    held: GeneratedImage | None = None
    try:
        async for event in _chained(first, events):
            if isinstance(event, Progress) and event.preview_png and previews[event.index] < drawing.partial_images:
                file = await files.preview(drawing, event.preview_png)
                yield _written(partial_event(drawing, event.index, previews[event.index], file))
                previews[event.index] += 1
            elif isinstance(event, ImageReady):
                if held is not None:
                    yield _written(await _completed(drawing, held, files))
                held = event.image
            elif isinstance(event, Finished) and held is not None:
                yield _written(await _completed(drawing, held, files) | job_of(drawing, event))
    except SynerDiffError as error:
        yield sse.event("error", {"type": "error", **api_error(error).envelope})
    finally:
        await events.aclose()


async def _completed(drawing: Drawing, image: GeneratedImage, files: Files) -> dict[str, Any]:
    return completed_event(drawing, image, await files.picture(drawing, image.data))


async def _chained(first: Event, events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
    yield first
    async for event in events:
        yield event


def _written(event: dict[str, Any]) -> bytes:
    return sse.event(event["type"], event)
