"""The blocking client: an AsyncClient on an event loop in a thread of its own."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self, TypeVar, Unpack

from synerdiff.client.aio import DEFAULT_ADDRESS, AsyncClient, OnEvent, collect
from synerdiff.client.options import GenerateOptions
from synerdiff.client.results import Event, GenerateResult, Job, Model
from synerdiff.tls import ClientTls

T = TypeVar("T")


class Client:
    """A connection to a SynerDiff deployment. Every error it raises is a SynerDiffError. Safe to share by threads.

    The arguments are AsyncClient's. `on_event` is called on the client's own thread: let it return soon.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        key: str = "",
        tls: ClientTls | None = None,
        patience_s: float = 20.0,
        wait_when_full: bool = False,
    ) -> None:
        self._loop = _LoopThread()
        self._client = self._loop.run(_opened(address, key, tls, patience_s, wait_when_full))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection. A job made by `generate` or `stream` that still runs is soon cancelled by the server."""
        if self._loop.is_running():
            self._loop.run(self._client.close())
            self._loop.stop()

    def generate(
        self,
        prompt: str,
        *,
        on_event: OnEvent | None = None,
        discard: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> GenerateResult:
        """Make pictures and wait for them; `on_event` is called with every event.

        The job is cancelled by the server when this client goes away. `discard`: the server forgets the job once its
        pictures are here, and does not keep them any longer. See GenerateOptions for the options.
        """
        return self._loop.run(self._client.generate(prompt, on_event=on_event, discard=discard, **options))

    def stream(self, prompt: str, *, discard: bool = False, **options: Unpack[GenerateOptions]) -> Iterator[Event]:
        """Like `generate`, as an iterator of events: Queued, Started, Progress, ImageReady, and at last Finished."""
        return self._loop.iterate(self._client.stream(prompt, discard=discard, **options))

    def submit(self, prompt: str, **options: Unpack[GenerateOptions]) -> "JobHandle":
        """Have pictures made by a job that outlives this client. Returns once it is accepted durably."""
        return JobHandle(self, self._loop.run(self._client.submit(prompt, **options)).job_id)

    def watch(self, job_id: str, *, after_sequence: int = 0) -> Iterator[Event]:
        """Follow a job to its end, from its first event or from the one after `after_sequence`."""
        return self._loop.iterate(self._client.watch(job_id, after_sequence=after_sequence))

    def result(self, job_id: str, *, on_event: OnEvent | None = None) -> GenerateResult:
        """Wait for the pictures of a job."""
        return self._loop.run(collect(self._client.watch(job_id), on_event))

    def job(self, job_id: str) -> Job:
        """A job as it stands, with the images it has so far."""
        return self._loop.run(self._client.job(job_id))

    def cancel(self, job_id: str) -> Job:
        """Cancel a job, at once. One that has ended is returned as it is."""
        return self._loop.run(self._client.cancel(job_id))

    def delete(self, job_id: str) -> None:
        """Have the server forget a job that has ended, with its pictures. Raises NotEnded, NotFound."""
        self._loop.run(self._client.delete(job_id))

    def models(self) -> tuple[Model, ...]:
        """The models of this deployment."""
        return self._loop.run(self._client.models())


@dataclass(frozen=True)
class JobHandle:
    """A submitted job."""

    client: Client
    job_id: str

    def result(self, *, on_event: OnEvent | None = None) -> GenerateResult:
        """Wait for the job's pictures."""
        return self.client.result(self.job_id, on_event=on_event)

    def events(self, *, after_sequence: int = 0) -> Iterator[Event]:
        """The job's events from its first to its last, as they come."""
        return self.client.watch(self.job_id, after_sequence=after_sequence)

    def status(self) -> Job:
        """The job as it stands."""
        return self.client.job(self.job_id)

    def cancel(self) -> Job:
        """Cancel the job, at once."""
        return self.client.cancel(self.job_id)

    def delete(self) -> None:
        """Have the server forget the job, which has ended, with its pictures."""
        self.client.delete(self.job_id)


class _LoopThread:
    """An event loop on a daemon thread, and two ways to use it from another."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="synerdiff-client", daemon=True)
        self._thread.start()

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; it is cancelled when the waiting thread is interrupted."""
        if not self._thread.is_alive():
            work.close()
            raise RuntimeError("this client is closed")
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, events: AsyncGenerator[T, None]) -> Iterator[T]:
        """`events`, one at a time; the async iterator is closed when this one is."""

        async def following() -> T | None:
            return await anext(events, None)

        try:
            while (event := self.run(following())) is not None:
                yield event
        finally:
            if self._thread.is_alive():
                self.run(events.aclose())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _opened(
    address: str, key: str, tls: ClientTls | None, patience_s: float, wait_when_full: bool
) -> AsyncClient:
    """An AsyncClient whose channel belongs to the running loop."""
    return AsyncClient(address, key=key, tls=tls, patience_s=patience_s, wait_when_full=wait_when_full)
