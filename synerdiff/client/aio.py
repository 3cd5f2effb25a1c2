"""The asyncio client of the public API."""

import copy
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar, Unpack

import grpc

from synerdiff.client.follow import Metadata, RetryPolicy, client_span, follow, persist
from synerdiff.client.options import GenerateOptions, generate_request
from synerdiff.client.results import (
    Event,
    Finished,
    GeneratedImage,
    GenerateResult,
    ImageReady,
    Job,
    Model,
    event_from_pb,
    job_from_pb,
    model_from_pb,
)
from synerdiff.errors import SynerDiffError
from synerdiff.proxies import proxy_to
from synerdiff.rpc import open_channel
from synerdiff.tls import ClientTls
from synerdiff.v1 import images_pb2, images_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"
OnEvent = Callable[[Event], object]
T = TypeVar("T")

# Unary calls answer from Redis; a server that takes longer than this hangs.
_UNARY_TIMEOUT_S = 30.0
_DISCARD_TIMEOUT_S = 5.0
# The server ends a job at its timeout; if it does not within this margin, the client does.
_DEADLINE_MARGIN_S = 10.0


def bearer(key: str) -> Metadata:
    """The gRPC metadata that shows an API key; none for ""."""
    return (("authorization", f"Bearer {key}"),) if key else ()


class AsyncClient:
    """A connection to a SynerDiff deployment, for asyncio. Every error it raises is a SynerDiffError.

    address: "host:port" or any gRPC target. key: the API key to show, where the deployment knows its callers.
    patience_s: how long calls are tried again without an answer, before and while a job runs. wait_when_full: when the
    queue is full, come back when the server says, instead of raising QueueFull. An HTTP proxy that the environment
    names is used for addresses of other machines.
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
        self.address = address
        proxy = proxy_to(address)
        self._channel = open_channel(address, tls=tls, round_robin=True, through_proxy=bool(proxy))
        self._stub = images_pb2_grpc.ImageGenerationStub(self._channel)
        self._policy = RetryPolicy(patience_s, wait_when_full, proxy)
        self._metadata = bearer(key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the connection. A job made by `generate` or `stream` that still runs is soon cancelled by the server."""
        await self._channel.close()

    def with_metadata(self, metadata: Metadata) -> Self:
        """The same connection, with further gRPC metadata in every call: (name, value), such as `authorization`."""
        other = copy.copy(self)
        other._metadata = (*self._metadata, *metadata)
        return other

    async def generate(
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
        options.setdefault("results_only", on_event is None)
        return await collect(self.stream(prompt, discard=discard, **options), on_event)

    async def stream(
        self, prompt: str, *, discard: bool = False, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Event, None]:
        """Like `generate`, as an iterator of events: Queued, Started, Progress, ImageReady, and at last Finished."""
        request = generate_request(prompt, options)
        with client_span("Generate", request) as metadata:
            async with aclosing(self._follow(request, options.get("timeout"), metadata)) as events:
                async for event in events:
                    if discard and isinstance(event, Finished):
                        await self._discard(event.job_id)
                    yield event

    async def submit(self, prompt: str, **options: Unpack[GenerateOptions]) -> "AsyncJobHandle":
        """Have pictures made by a job that outlives this client. Returns once it is accepted durably."""
        request = generate_request(prompt, options)
        with client_span("Submit", request) as metadata:
            return AsyncJobHandle(self, job_from_pb(await self._unary(self._stub.Submit, request, metadata)).job_id)

    async def watch(self, job_id: str, *, after_sequence: int = 0) -> AsyncGenerator[Event, None]:
        """Follow a job to its end, from its first event or from the one after `after_sequence`."""
        request = images_pb2.WatchRequest(job_id=job_id, after_sequence=after_sequence)
        async with aclosing(self._follow(request, None)) as events:
            async for event in events:
                yield event

    async def job(self, job_id: str) -> Job:
        """A job as it stands, with the images it has so far."""
        return await self._whole(await self._unary(self._stub.GetJob, images_pb2.GetJobRequest(job_id=job_id)))

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job, at once. One that has ended is returned as it is."""
        return await self._whole(await self._unary(self._stub.CancelJob, images_pb2.CancelJobRequest(job_id=job_id)))

    async def delete(self, job_id: str) -> None:
        """Have the server forget a job that has ended, with its pictures. Raises NotEnded, NotFound."""
        await self._unary(self._stub.DeleteJob, images_pb2.DeleteJobRequest(job_id=job_id))

    async def models(self) -> tuple[Model, ...]:
        """The models of this deployment."""
        reply = await self._unary(self._stub.ListModels, images_pb2.ListModelsRequest())
        return tuple(model_from_pb(card) for card in reply.models)

    async def _whole(self, pb: images_pb2.Job) -> Job:
        """The job with the images that its answer had no room for, each from an answer of its own."""
        for at, image in enumerate(pb.images):
            if image.size_bytes and not image.data:
                request = images_pb2.GetImageRequest(job_id=pb.job_id, index=image.index)
                pb.images[at].CopyFrom(await self._unary(self._stub.GetImage, request))
        return job_from_pb(pb)

    async def _discard(self, job_id: str) -> None:
        """Delete a job after its pictures have arrived, in one try: otherwise it goes when its retention ends."""
        with suppress(grpc.aio.AioRpcError):
            request = images_pb2.DeleteJobRequest(job_id=job_id)
            await self._stub.DeleteJob(request, timeout=_DISCARD_TIMEOUT_S, metadata=self._metadata)

    async def _unary(self, method: Any, request: Any, metadata: Metadata = ()) -> Any:
        # Safe to repeat, all of them: a Submit carries its request_id.
        async def attempt(left: float | None) -> Any:
            timeout_s = _UNARY_TIMEOUT_S if left is None else min(left, _UNARY_TIMEOUT_S)
            return await method(request, timeout=timeout_s, metadata=(*self._metadata, *metadata))

        return await persist(attempt, self._policy, None)

    async def _follow(
        self,
        start: images_pb2.GenerateRequest | images_pb2.WatchRequest,
        timeout_s: float | None,
        metadata: Metadata = (),
    ) -> AsyncGenerator[Event, None]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s + _DEADLINE_MARGIN_S
        calls = follow(self._stub, start, self._policy, deadline, (*self._metadata, *metadata))
        async with aclosing(calls) as events:
            async for pb in events:
                event = event_from_pb(pb)
                if event is not None:
                    yield event


@dataclass(frozen=True)
class AsyncJobHandle:
    """A submitted job."""

    client: AsyncClient
    job_id: str

    async def result(self, *, on_event: OnEvent | None = None) -> GenerateResult:
        """Wait for the job's pictures."""
        return await collect(self.events(), on_event)

    def events(self, *, after_sequence: int = 0) -> AsyncGenerator[Event, None]:
        """The job's events from its first to its last, as they come."""
        return self.client.watch(self.job_id, after_sequence=after_sequence)

    async def status(self) -> Job:
        """The job as it stands."""
        return await self.client.job(self.job_id)

    async def cancel(self) -> Job:
        """Cancel the job, at once."""
        return await self.client.cancel(self.job_id)

    async def delete(self) -> None:
        """Have the server forget the job, which has ended, with its pictures."""
        await self.client.delete(self.job_id)


async def collect(events: AsyncIterator[Event], on_event: OnEvent | None) -> GenerateResult:
    """The result that a job's events add up to. Raises the job's own error."""
    images: dict[int, GeneratedImage] = {}
    async for event in events:
        if on_event is not None:
            on_event(event)
        if isinstance(event, ImageReady):
            images[event.image.index] = event.image
        if isinstance(event, Finished):
            return GenerateResult(
                job_id=event.job_id,
                images=tuple(images[index] for index in sorted(images)),
                timings=event.timings,
                warnings=event.warnings,
                skipped_steps=event.skipped_steps,
            )
    raise SynerDiffError("the job's events ended without an end of the job")
