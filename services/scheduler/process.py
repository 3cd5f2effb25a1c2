"""The life of a scheduler process: serve the API, lead the pool when it can, drain on SIGTERM."""

import asyncio
import contextlib
import gc
import os
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import cast

import uvloop
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.scheduler.api.call_durations import CallDurations
from services.scheduler.api.generate import MAX_REQUEST_BYTES, ImageGenerationService
from services.scheduler.api.operations import OperationsService
from services.scheduler.leading.pool import Pool
from services.scheduler.profiles.store import ProfileStore
from services.scheduler.settings import SchedulerSettings
from services.scheduler.store import keys
from services.scheduler.store.images import UnusableImages, open_images
from services.scheduler.store.leadership import Leadership
from services.scheduler.store.queue import JobStore
from services.scheduler.telemetry.metrics import PoolMetrics
from synerdiff.errors import SynerDiffError, Unavailable
from synerdiff.otlp import MissingTracing, start_tracing
from synerdiff.redis_client import TROUBLE_LOG, EvictingRedis, check_keeps_all, connect, patiently
from synerdiff.registry import WorkerRegistry
from synerdiff.rpc import ServiceHost, create_server
from synerdiff.settings import EXIT_BAD_SETTINGS, load
from synerdiff.stopping import cancel_and_wait, stop_signal
from synerdiff.telemetry import configure_logging, get_logger, serve_metrics
from synerdiff.tracing import Tracer, Value

log = get_logger("process")

GAUGES_EVERY_S = 1.0
_WRITTEN_KEPT_MS = 60_000
_UNUSABLE = (MissingTracing, EvictingRedis, UnusableImages)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a scheduler until SIGTERM or SIGINT. Returns the exit status; EXIT_BAD_SETTINGS: a restart is no help."""
    settings = load(SchedulerSettings, argv)
    configure_logging("scheduler", settings.log_level)
    with contextlib.ExitStack() as on_exit:
        try:
            tracer = _tracer(settings)
            on_exit.callback(tracer.close)
            return uvloop.run(serve(settings, tracer))
        except SynerDiffError as error:
            log.critical("cannot start", reason=str(error))
            return EXIT_BAD_SETTINGS if isinstance(error, _UNUSABLE) else 1


def _tracer(settings: SchedulerSettings) -> Tracer:
    resource: dict[str, Value] = {
        "service.name": "synerdiff-scheduler",
        "service.instance.id": settings.instance_id or f"{socket.gethostname()}/{os.getpid()}",
        "synerdiff.pool": settings.pool,
    }
    return start_tracing(settings.otlp_endpoint, settings.trace_ratio, resource)


async def serve(settings: SchedulerSettings, tracer: Tracer) -> int:
    """Serve until a stop signal. Returns the exit status. Raises EvictingRedis, or SynerDiffError without a port."""
    stop = stop_signal()
    serve_metrics("scheduler", settings.metrics_port)
    async with _store(settings, tracer) as (redis, store, registry, pool):
        with contextlib.suppress(Unavailable):  # one that is away is asked once it answers
            await patiently(lambda: check_keeps_all(redis), 2.0)
        server = create_server(
            max_receive_bytes=MAX_REQUEST_BYTES,
            max_connection_age_s=settings.connection_age_s,
            max_concurrent_rpcs=settings.max_concurrent_rpcs,
            check=settings.gate(),
            interceptors=[CallDurations()],
        )
        host = ServiceHost(server, tls=settings.server_tls())
        ImageGenerationService(store, registry, settings.admission_limits(), host.draining, tracer).add_to(host)
        operations = OperationsService(pool)
        operations.add_to(host)
        await host.start(settings.listen, settings.health_listen)
        parts = [
            asyncio.create_task(part, name=name)
            for name, part in (
                ("pool", pool.run()),
                ("sweep", pool.sweep()),
                ("images", pool.sweep_images()),
                ("gauges", _repeat(operations.update_gauges, GAUGES_EVERY_S)),
                ("readiness", follow_redis(host, redis, store)),
            )
        ]
        _spare_collections()
        log.info("serving", address=host.address, pool=settings.pool, policy=settings.policy)
        died = await _first_to_end(parts, stop)
        log.info("draining")
        # This scheduler resigns before calls end: another one leads by the time their clients reconnect to it.
        await host.withdraw()
        await cancel_and_wait(*parts)
        await host.drain(settings.drain_grace_s)
    return 1 if died else 0


@contextlib.asynccontextmanager
async def _store(
    settings: SchedulerSettings, tracer: Tracer
) -> AsyncIterator[tuple[Redis, JobStore, WorkerRegistry, Pool]]:
    images = open_images(settings.images_url)
    await images.check()
    redis = connect(settings.redis_url)
    store, registry = JobStore(redis, settings.store_settings(), images), WorkerRegistry(redis)
    leadership = Leadership(redis, settings.pool, settings.instance_id or socket.gethostname(), settings.leader_ttl_s)
    try:
        options = settings.leader_options(ProfileStore(redis))
        pool = Pool(settings.pool, options, store, registry, leadership, settings.leader_ttl_s, tracer)
        yield redis, store, registry, pool
    finally:
        await store.close()
        await redis.aclose()
        images.close()


async def _first_to_end(parts: list[asyncio.Task[None]], stop: asyncio.Event) -> bool:
    """Wait for the signal. True when a part died first: the process is then better off restarted."""
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([stopping, *parts], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    for part in done - {stopping}:
        log.critical("a part of the scheduler died", part_name=part.get_name(), exc_info=part.exception())
    return bool(done - {stopping})


def _spare_collections() -> None:
    """Ticks make many short-lived values and few cycles; default thresholds cost an eighth of the time. Calls that are
    refused do make cycles (their errors' tracebacks): at most 1,250,000 objects of them wait."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 5, 5)


async def follow_redis(host: ServiceHost, redis: Redis, store: JobStore) -> None:
    """Report ready while Redis takes and keeps writes: otherwise nothing can be accepted. Log a loss of Redis' data,
    which a key set once for all schedulers shows. Pass Redis' memory use to the store."""
    metrics, known = PoolMetrics.of_process(), b""
    while True:
        try:
            await patiently(lambda: redis.set(keys.WRITTEN, "", px=_WRITTEN_KEPT_MS), 2.0)
            data_id = await patiently(lambda: _data_id(redis), 2.0)
            if known and data_id != known:
                log.error("redis has lost its data: jobs that were accepted before are gone")
                metrics.redis_losses.inc()
            known = data_id
            memory = await patiently(lambda: check_keeps_all(redis), 2.0)
            used_bytes, limit_bytes = memory.get("used_memory", 0), memory.get("maxmemory", 0)
            metrics.redis_used.set(used_bytes)
            metrics.redis_limit.set(limit_bytes)
            store.memory_is(used_bytes, limit_bytes)
            metrics.redis_up.set(1)
            await host.set_ready(True)
            TROUBLE_LOG.wrote()
        except (Unavailable, EvictingRedis, RedisError) as error:
            TROUBLE_LOG.met(str(error))
            metrics.redis_up.set(0)
            await host.set_ready(False)
        await asyncio.sleep(1.0)


async def _data_id(redis: Redis) -> bytes:
    await redis.set(keys.DATA_ID, uuid.uuid4().hex, nx=True)
    return cast(bytes, await redis.get(keys.DATA_ID)) or b""


async def _repeat(step: Callable[[], Awaitable[None]], every_s: float) -> None:
    while True:
        with contextlib.suppress(RedisError, Unavailable):
            await step()
        await asyncio.sleep(every_s)
