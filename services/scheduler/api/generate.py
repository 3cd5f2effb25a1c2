"""The public API: thin servicers from proto to the job store and back. Any scheduler answers for any job."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

from prometheus_client import Counter

from services.scheduler.api.gate import Rates
from services.scheduler.api.validation import AdmissionLimits, body_digest, resolve
from services.scheduler.callers import Caller, calling
from services.scheduler.policy.ordering import row_calls
from services.scheduler.store.queue import Acceptance, JobStore
from services.scheduler.telemetry.metrics import CallerUsage
from services.scheduler.telemetry.request_traces import Deliveries, RequestTrace, trace_id
from synerdiff.cards import ModelCard
from synerdiff.errors import FieldViolation, InvalidRequest, NotFound, PermissionDenied, SynerDiffError, Unavailable
from synerdiff.jobs import JobRecord
from synerdiff.redis_client import patiently
from synerdiff.registry import WorkerRecord, WorkerRegistry, served_weights
from synerdiff.requests import ImageRequest, rows_of_call
from synerdiff.rpc import MIB, ServiceHost
from synerdiff.stopping import cancel_and_wait
from synerdiff.telemetry import get_logger
from synerdiff.tracing import Tracer, now_ns
from synerdiff.v1 import images_pb2, images_pb2_grpc
from synerdiff.wire.public import job_to_pb, model_card_to_pb

SERVICE = "synerdiff.v1.ImageGeneration"

# A GenerateRequest is at most two prompts of 8 KiB and a few small fields: no client needs more.
MAX_REQUEST_BYTES = 1 << 20
# Bytes of images in one answer: within the bound of clients that take 64 MiB; of Submit, within every client's.
MAX_IMAGE_BYTES = 60 * MIB
MAX_SUBMIT_IMAGE_BYTES = 3 * MIB
REDIS_PATIENCE_S = 2.0
AGAIN_AFTER_S = 1.0
# For this long after a model changes, requests are checked against its old limits and get its old weights.
_KEPT_S = 1.0
_ON_THE_WAY = ("queued", "started", "progress")

_log = get_logger("api")
_accepted = Counter("synerdiff_requests_accepted_total", "Requests made into jobs", ["model", "method"])
_refused = Counter("synerdiff_requests_refused_total", "Requests not accepted, by gRPC status code", ["code"])
_usage = CallerUsage()

T = TypeVar("T")


class EmptyWatches:
    """The end of each job's last empty watch: one without events, since the client had seen the job's last.

    A client that takes this end for a broken connection watches again without a pause, and would occupy a core. So the
    next empty watch within AGAIN_AFTER_S ends only after the rest of that time.
    """

    def __init__(self) -> None:
        self._ended_at_s: dict[str, float] = {}

    async def ended(self, job_id: str) -> None:
        """Return when another empty watch of the job may end."""
        now_s = time.monotonic()
        last_s = self._ended_at_s.pop(job_id, -math.inf)
        ends_at_s = max(now_s, last_s + AGAIN_AFTER_S) if last_s <= now_s else last_s
        self._ended_at_s[job_id] = ends_at_s
        while (oldest := next(iter(self._ended_at_s))) != job_id and self._ended_at_s[oldest] + AGAIN_AFTER_S < now_s:
            del self._ended_at_s[oldest]
        await asyncio.sleep(ends_at_s - now_s)


class Kept(Generic[T]):
    """The latest value of `read`, read again once it is older than `for_s` seconds or not `good`. Concurrent callers
    share one reading.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], for_s: float) -> None:
        self._read = read
        self._for_s = for_s
        self._value: T | None = None
        self._read_at_s = -math.inf
        self._reading: asyncio.Task[None] | None = None

    async def get(self, good: Callable[[T], bool] = lambda value: True) -> T:
        """The value; one that is not `good` was read after this call began. Raises the errors of `read`."""
        # A reading under way may have begun too early to find a good value: the one after it has not.
        for _ in range(2):
            if time.monotonic() - self._read_at_s <= self._for_s and good(cast(T, self._value)):
                break
            under_way = self._reading is not None
            if self._reading is None:
                self._reading = asyncio.create_task(self._read_again())
            await asyncio.shield(self._reading)
            if not under_way:
                break
        return cast(T, self._value)

    async def _read_again(self) -> None:
        try:
            self._value, self._read_at_s = await self._read(), time.monotonic()
        finally:
            self._reading = None


class ImageGenerationService(images_pb2_grpc.ImageGenerationServicer):
    """synerdiff.v1.ImageGeneration.

    A handler never ends a job because its call ends: a client that leaves, a connection that ages out and a draining
    server look alike from here. The lease that `JobStore.follow` renews tells an abandoned job from a moved one.
    """

    def __init__(
        self,
        store: JobStore,
        registry: WorkerRegistry,
        limits: AdmissionLimits,
        draining: asyncio.Event,
        tracer: Tracer | None = None,
    ) -> None:
        self._store = store
        self._registry = registry
        self._limits = limits
        self._draining = draining
        self._tracer = tracer or Tracer()
        self._empty_watches = EmptyWatches()
        self._rates = Rates()
        self._models: dict[str, ModelCard] = {}
        self._cards = Kept(self._read_cards, _KEPT_S)
        self._workers = Kept(self._read_workers, _KEPT_S)

    def add_to(self, host: ServiceHost) -> None:
        """Serve on `host`."""
        host.add(SERVICE, images_pb2_grpc.add_ImageGenerationServicer_to_server, self)

    async def Generate(
        self, request: images_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[images_pb2.GenerateEvent]:
        """Accept durably, then follow to the end."""
        made = await self._accept(request, context, abandonable=True)
        deliveries = await self._deliveries(made)
        following = self._follow(made.job_id, 0, request.results_only, context, deliveries)
        async with contextlib.aclosing(following) as events:
            async for event in events:
                yield event

    async def Submit(self, request: images_pb2.GenerateRequest, context: Any) -> images_pb2.Job:
        """Accept durably and return."""
        made = await self._accept(request, context, abandonable=False)
        if made.record is not None:
            return job_to_pb(made.record, position=made.position)
        return await self._job_message(await self._known(made.job_id), MAX_SUBMIT_IMAGE_BYTES)

    async def Watch(self, request: images_pb2.WatchRequest, context: Any) -> AsyncIterator[images_pb2.GenerateEvent]:
        """Follow a job from after `after_sequence` to its end."""
        record = await self._known(request.job_id)
        deliveries = Deliveries(self._tracer, record.job_id, record.traceparent)
        following = self._follow(record.job_id, request.after_sequence, request.results_only, context, deliveries)
        async with contextlib.aclosing(following) as events:
            async for event in events:
                yield event

    async def GetJob(self, request: images_pb2.GetJobRequest, context: Any) -> images_pb2.Job:
        """The job as it stands."""
        return await self._job_message(await self._known(request.job_id), request.max_image_bytes)

    async def GetImage(self, request: images_pb2.GetImageRequest, context: Any) -> images_pb2.Image:
        """One image with its bytes."""
        record = await self._known(request.job_id)
        image = await self._store.image(request.job_id, request.index)
        if image is None:
            count = record.request.num_images
            raise NotFound(f"index: the job has no image {request.index}, or not yet; it was asked for {count}")
        return image

    async def CancelJob(self, request: images_pb2.CancelJobRequest, context: Any) -> images_pb2.Job:
        """Cancel a job that has not ended."""
        await self._known(request.job_id)
        record = await self._store.cancel(request.job_id, "a client cancelled it")
        if record is None:
            raise _unknown_job(request.job_id)
        ids = {"job_id": record.job_id, "request_id": record.request.request_id} | trace_id(record.traceparent)
        _log.info("cancelled", state=record.state.name, **ids)
        return await self._job_message(record, request.max_image_bytes)

    async def DeleteJob(self, request: images_pb2.DeleteJobRequest, context: Any) -> images_pb2.DeleteJobResponse:
        """Forget a job that has ended."""
        await self._known(request.job_id)
        await self._store.delete(request.job_id)
        return images_pb2.DeleteJobResponse()

    async def ListModels(self, request: images_pb2.ListModelsRequest, context: Any) -> images_pb2.ListModelsResponse:
        """Every model known, and whether a UNet and a VAE worker serve it just now."""
        workers = await self._read_workers()
        serving = {(worker.model_card.name, worker.kind) for worker in workers if not worker.draining}
        return images_pb2.ListModelsResponse(
            models=[
                model_card_to_pb(
                    card,
                    available={(card.name, "unet"), (card.name, "vae")} <= serving,
                    weights=served_weights(workers, card.name),
                )
                for card in await self._store.models()
            ]
        )

    async def _accept(self, pb: images_pb2.GenerateRequest, context: Any, *, abandonable: bool) -> Acceptance:
        method, caller = "Generate" if abandonable else "Submit", calling()
        trace = RequestTrace(self._tracer, f"{SERVICE}/{method}", context.invocation_metadata())
        try:
            self._rates.take(caller)
            request = await self._with_weights(resolve(pb, await self._cards_for(pb.model), self._limits))
            _check_allowed(request, caller)
            made = await self._store.accept(
                request, body_digest(pb), abandonable, trace.traceparent, caller, self._cost(request)
            )
        except SynerDiffError as error:
            _usage.refused(caller)
            _refused.labels(error.code.name).inc()
            trace.refused(error.message)
            raise
        trace.accepted(made.job_id, request.request_id, made.created)
        if made.created:
            _accepted.labels(request.model, method.lower()).inc()
            _usage.accepted(caller, request)
            ids = {"job_id": made.job_id, "request_id": request.request_id} | trace.log_fields
            _log.info("accepted", model=request.model, caller=caller.name, **ids)
        return made

    async def _deliveries(self, made: Acceptance) -> Deliveries:
        """The deliveries of a job, in the trace of the call that made it."""
        record = made.record
        if record is None and self._tracer.enabled:
            record = await self._known(made.job_id)
        return Deliveries(self._tracer, made.job_id, record.traceparent if record else "")

    def _cost(self, request: ImageRequest) -> float:
        card = self._models[request.model]
        limits = card.limits(request.sampler)
        calls = limits.unet_calls(request.num_inference_steps) if limits else request.num_inference_steps
        pixels, native = request.width * request.height, card.native_width * card.native_height
        return row_calls(calls, rows_of_call(request.guidance_scale), request.num_images, pixels, native)

    async def _cards_for(self, model: str) -> list[ModelCard]:
        """The known models: as they were within the last second, if `model` was among them; "" is the default one."""
        cards = await self._cards.get(lambda known: model in known if model else bool(known))
        return sorted(cards.values(), key=lambda card: card.name)

    async def _read_cards(self) -> dict[str, ModelCard]:
        """A model is never unknown again: a Redis that has lost its card has it back once a worker announces itself."""
        self._models |= {card.name: card for card in await self._store.models()}
        return self._models

    async def _read_workers(self) -> list[WorkerRecord]:
        return await patiently(self._registry.workers, REDIS_PATIENCE_S)

    async def _with_weights(self, request: ImageRequest) -> ImageRequest:
        """The request with the weights that it is accepted for: the newest served, as of the last second."""
        newest: dict[str, str] = {}
        for served in served_weights(await self._workers.get(), request.model):
            newest.setdefault(served.kind, served.digest)
        return replace(request, unet_weights=newest.get("unet", ""), vae_weights=newest.get("vae", ""))

    async def _follow(
        self, job_id: str, after_sequence: int, results_only: bool, context: Any, deliveries: Deliveries
    ) -> AsyncGenerator[images_pb2.GenerateEvent, None]:
        # The client learns at once that the job exists, however long its next event takes.
        await context.send_initial_metadata(())
        draining = asyncio.ensure_future(self._draining.wait())
        events = self._store.follow(job_id, after_sequence)
        told = False
        try:
            while (event := await _next_unless(draining, events)) is not None:
                if results_only and told and event.WhichOneof("event") in _ON_THE_WAY:
                    continue
                began_ns = now_ns()
                yield event
                told = True
                deliveries.delivered(event, began_ns)
            if not told:
                await self._empty_watches.ended(job_id)
        finally:
            draining.cancel()
            await events.aclose()

    async def _known(self, job_id: str) -> JobRecord:
        """The caller's own job. Raises NotFound for an unknown job and for another caller's, which look alike."""
        record = await self._store.job(job_id)
        if record is None or record.caller != calling().name:
            raise _unknown_job(job_id)
        return record

    async def _job_message(self, record: JobRecord, max_image_bytes: int) -> images_pb2.Job:
        """`max_image_bytes`: 0 for as many as a message has room for."""
        return job_to_pb(
            record,
            position=await self._store.position(record.job_id),
            progress=await self._store.progress(record.job_id),
            images=await self._store.images(record.job_id, min(max_image_bytes or MAX_IMAGE_BYTES, MAX_IMAGE_BYTES)),
        )


def _check_allowed(request: ImageRequest, caller: Caller) -> None:
    """Raise InvalidRequest for more images than the quota ever allows, PermissionDenied for the priority."""
    for bound in ("waiting_images", "open_images"):
        if 0 < getattr(caller.quota, bound) < request.num_images:
            what = f"{request.num_images} is more than caller {caller.name!r} may have: {bound}"
            raise InvalidRequest(FieldViolation("num_images", f"{what}={getattr(caller.quota, bound)}"))
    if request.priority not in caller.priorities:
        allowed = ", ".join(priority.name for priority in sorted(caller.priorities))
        raise PermissionDenied(f"priority: {request.priority.name} is not for caller {caller.name!r}, but {allowed}")


def _unknown_job(job_id: str) -> NotFound:
    return NotFound(f"job_id: {job_id[:64]!r} is unknown, or its retention time has passed")


async def _next_unless(draining: asyncio.Future[Any], events: AsyncGenerator[T, None]) -> T | None:
    """The next event, or None at their end. Raises Unavailable once `draining` is done."""
    coming = asyncio.ensure_future(anext(events, None))
    try:
        await asyncio.wait({coming, draining}, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            raise Unavailable("this scheduler is shutting down; watch the job from another")
        return coming.result()
    finally:
        await cancel_and_wait(coming)
