"""The present workers: each announces itself under a TTL, so that a dead one is soon forgotten.

Model cards stay when their workers go: jobs of a known model without a worker are queued, an unknown one is refused.
"""

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from synerdiff.cards import ModelCard, ServedWeights
from synerdiff.errors import InvalidRequest
from synerdiff.host import boot_id
from synerdiff.json_codec import JsonCodec
from synerdiff.redis_client import TROUBLE_LOG
from synerdiff.telemetry import get_logger

WorkerKind = Literal["unet", "vae"]

WORKERS = "synerdiff:workers"  # set of ids, some of them gone
MODELS = "synerdiff:models"  # hash: model name -> card as JSON

# One that has announced itself since it was missed stays.
_FORGET_GONE = f"""
for index, worker_key in ipairs(KEYS) do
  if redis.call('EXISTS', worker_key) == 0 then
    redis.call('SREM', '{WORKERS}', ARGV[index])
  end
end
"""

T = TypeVar("T")

log = get_logger("registry")


@dataclass(frozen=True)
class WorkerRecord:
    """A worker and how to reach it. `address` is host:port; `domain` names the GPU or CPU that it shares.

    `device`, `dtype` (of its UNet's or VAE's computation), `model_digest`, `threads` (CPU threads; 0 on GPUs),
    `mps_thread_percent` (its share of the GPU's threads under CUDA MPS; 0: not under MPS) and `execution` ("eager";
    "compiled": a package serves the native size) select the worker's profile. `memory_format`: that of its
    convolution weights. `memory_limit_bytes`: most device memory that it may take; 0: not known, as on CPUs.
    `draining`: it takes no new tasks, but a new leader has to find those it holds. `weights`: digest of those it holds
    in memory (`digest.weights_digest`), `loaded_at_ms` (Unix) when it had read them.
    """

    worker_id: str
    kind: WorkerKind
    address: str
    model_card: ModelCard
    pool: str
    domain: str
    boot_id: str
    pid: int
    device: str = ""
    dtype: str = ""
    model_digest: str = ""
    threads: int = 0
    mps_thread_percent: int = 0
    memory_limit_bytes: int = 0
    execution: str = "eager"
    memory_format: str = ""
    draining: bool = False
    weights: str = ""
    loaded_at_ms: int = 0


def served_weights(records: Iterable[WorkerRecord], model: str) -> tuple[ServedWeights, ...]:
    """The weights of a model on workers that take new work: UNet workers' first, each kind's newest read first."""
    serving = [record for record in records if record.model_card.name == model and not record.draining]
    serving.sort(key=lambda record: (record.kind, -record.loaded_at_ms, record.worker_id))
    counts = Counter((record.kind, record.weights) for record in serving if record.weights)
    return tuple(ServedWeights(kind, digest, workers) for (kind, digest), workers in counts.items())


def default_domain(gpu_uuid: str | None = None) -> str:
    """The domain of a worker: its GPU if it has one, else the CPU of its host."""
    return gpu_uuid or f"cpu:{boot_id()}"


_CARD = JsonCodec(ModelCard, "model card")
_RECORD = JsonCodec(WorkerRecord, "worker record")


class WorkerRegistry:
    """The announced workers and the known models, in Redis as JSON. Methods raise redis's own errors.

    An unreadable one, damaged or of another version, is left out and logged once.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._forget_gone = redis.register_script(_FORGET_GONE)

    async def announce(self, record: WorkerRecord, ttl_s: float) -> None:
        """Make a worker known for `ttl_s` seconds. UNet workers' model cards are kept for good: theirs are complete."""
        async with self._redis.pipeline(transaction=True) as batch:
            batch.set(_worker_key(record.worker_id), _RECORD.dump(record), px=round(ttl_s * 1000))
            batch.sadd(WORKERS, record.worker_id)
            if record.kind == "unet":
                batch.hset(MODELS, record.model_card.name, _CARD.dump(record.model_card))
            await batch.execute()

    async def withdraw(self, worker_id: str) -> None:
        """Forget a worker at once."""
        async with self._redis.pipeline(transaction=True) as batch:
            batch.delete(_worker_key(worker_id))
            batch.srem(WORKERS, worker_id)
            await batch.execute()

    async def workers(self, pool: str | None = None) -> list[WorkerRecord]:
        """The workers announced just now, of one pool or of all, by id."""
        worker_ids = sorted(cast(set[bytes], await self._redis.smembers(WORKERS)))
        if not worker_ids:
            return []
        texts = await self._redis.mget([_worker_key(name.decode()) for name in worker_ids])
        gone = [name for name, text in zip(worker_ids, texts, strict=True) if text is None]
        if gone:
            with contextlib.suppress(ResponseError):  # a Redis that takes no writes just now still has its workers
                await self._forget_gone(keys=[_worker_key(name.decode()) for name in gone], args=gone)
        records = _readable(_RECORD, (text for text in texts if text is not None))
        return [record for record in records if pool is None or record.pool == pool]

    async def cards(self) -> list[ModelCard]:
        """Every model ever served here, by name."""
        return sorted(_readable(_CARD, await self._redis.hvals(MODELS)), key=lambda card: card.name)


async def keep_announced(registry: WorkerRegistry, record: Callable[[], WorkerRecord], ttl_s: float = 10.0) -> None:
    """Announce a worker every third of the TTL until cancelled, through any trouble with Redis; then withdraw it."""
    try:
        while True:
            try:
                await registry.announce(record(), ttl_s)
                TROUBLE_LOG.wrote()
            except (RedisError, OSError) as error:
                if not TROUBLE_LOG.failed(error):
                    log.warning("could not announce the worker", worker=record().worker_id, error=str(error))
            await asyncio.sleep(ttl_s / 3)
    finally:
        try:
            await registry.withdraw(record().worker_id)
        except (RedisError, OSError) as error:
            log.warning("could not withdraw the worker", worker=record().worker_id, error=str(error))


def _readable(codec: JsonCodec[T], texts: Iterable[str | bytes]) -> Iterator[T]:
    for text in texts:
        try:
            yield codec.parse(text)
        except InvalidRequest as error:
            _tell_once(text, error.message)


@functools.lru_cache(maxsize=256)
def _tell_once(text: str | bytes, error: str) -> None:
    log.error("a worker's record or a model's card cannot be read: it is left out", error=error, text=text[:200])


def _worker_key(worker_id: str) -> str:
    return f"synerdiff:worker:{worker_id}"
