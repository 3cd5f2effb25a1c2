"""The leader's streams to its workers: one each, opened once it is announced, opened again when it has ended."""

import asyncio
import time
import uuid
from dataclasses import dataclass

import grpc

from services.scheduler.engine.effects import WorkerEffect
from services.scheduler.leading.worker_stream import Listener, Overdue, Patience, PlanWatch, WorkerStream
from synerdiff.errors import StaleLeader
from synerdiff.registry import WorkerRecord
from synerdiff.status import from_rpc_error
from synerdiff.stopping import cancel_and_wait
from synerdiff.telemetry import get_logger
from synerdiff.tls import BadTlsFiles, ClientTls
from synerdiff.v1 import stages_pb2

log = get_logger("workers")

FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
MOST_TIMES = 10


@dataclass(frozen=True)
class _GivenUp:
    """A worker's process that was given up: how often in a row, and until when it is not called, by `monotonic`."""

    pid: int
    times: int
    until_s: float


class WorkerStreams:
    """The streams to every announced worker of a pool.

    A worker that is given up is called again after a second. Each further time in a row doubles that pause and the
    patience: other workers have its tasks by then, and a worker that is only slow gets through.
    """

    def __init__(
        self, token: int, leader: Listener, tls: ClientTls | None = None, patience: Patience | None = None
    ) -> None:
        self._token = token
        self._leader_id = uuid.uuid4().hex  # of this leadership: Redis may give its token out again
        self._leader = leader
        self._tls = tls
        self._patience = patience or Patience()
        self._streams: dict[str, WorkerStream] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._given_up: dict[str, _GivenUp] = {}

    def send(self, effect: WorkerEffect) -> None:
        """Pass a command on. To a worker whose stream has just ended it is dropped: the engine hears of that end."""
        stream = self._streams.get(effect.worker_id)
        if stream:
            stream.send(effect)

    def reconcile(self, announced: list[WorkerRecord]) -> None:
        """Open a stream to each announced worker without one; mark which of the others take no new work.

        A draining worker announces that. One whose record has expired while its stream is open is not gone: Redis does
        not take its announcements.
        """
        known = {record.worker_id: record for record in announced}
        for worker_id, stream in list(self._streams.items()):
            record = known.get(worker_id)
            if stream.watch.answered:
                self._given_up.pop(worker_id, None)
            stream.announced(record is None or not record.draining)
            if record and (record.address, record.pid) != (stream.record.address, stream.record.pid):
                self._tasks[worker_id].cancel()  # another life of the same worker
        for worker_id, record in known.items():
            if worker_id not in self._streams:
                self._open(record)
        kept = known.keys() | self._streams.keys()
        self._given_up = {worker_id: life for worker_id, life in self._given_up.items() if worker_id in kept}

    def _open(self, record: WorkerRecord) -> None:
        life = self._given_up.get(record.worker_id)
        if life and life.pid != record.pid:
            del self._given_up[record.worker_id]
            life = None
        if life and time.monotonic() < life.until_s:
            return
        attach = stages_pb2.Attach(leader_token=self._token, domain=record.domain, leader_id=self._leader_id)
        watch = PlanWatch(self._patience, 2.0**life.times if life else 1.0, warm=life is not None)
        stream = WorkerStream(record, attach, self._leader, self._tls, watch)
        self._streams[record.worker_id] = stream
        self._tasks[record.worker_id] = asyncio.create_task(self._run(stream))

    async def _run(self, stream: WorkerStream) -> None:
        worker_id = stream.record.worker_id
        try:
            await stream.run()
        except grpc.aio.AioRpcError as error:
            log.info("worker stream ended", worker_id=worker_id, code=str(error.code()), details=error.details())
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                refusal = from_rpc_error(error)
                self._leader.superseded(refusal.newest_token if isinstance(refusal, StaleLeader) else 0)
        except TimeoutError:
            log.warning("worker did not answer", worker_id=worker_id, address=stream.record.address)
        except BadTlsFiles as error:
            log.error("worker cannot be called", worker_id=worker_id, reason=str(error))
        except Overdue as error:
            log.error("worker is given up: its tasks run elsewhere, or there again", worker_id=worker_id, of=str(error))
            self._give_up(stream)
        except Exception:
            log.exception("worker is given up: a report of it is a fault of ours, or of its", worker_id=worker_id)
            self._give_up(stream)
        finally:
            self._streams.pop(worker_id, None)
            self._tasks.pop(worker_id, None)

    def _give_up(self, stream: WorkerStream) -> None:
        before = self._given_up.get(stream.record.worker_id)
        times = min(before.times + 1, MOST_TIMES) if before and not stream.watch.answered else 1
        until_s = time.monotonic() + min(FIRST_PAUSE_S * 2.0 ** (times - 1), MOST_PAUSE_S)
        self._given_up[stream.record.worker_id] = _GivenUp(stream.record.pid, times, until_s)

    async def close(self) -> None:
        """End every stream. Workers keep their tasks for the next leader."""
        await cancel_and_wait(*self._tasks.values())
