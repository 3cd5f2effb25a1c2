"""`synerdiff status --watch`: the workers and queues of a running system, live, in 80 columns."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from synerdiff.errors import SynerDiffError
from synerdiff.v1 import operations_pb2

Reply = operations_pb2.GetStatusResponse

_EVERY_S = 1.0


async def watch(ask: Callable[[], Awaitable[Reply]], console: Console, address: str, every_s: float = _EVERY_S) -> None:
    """Show the answer of `ask` every second until cancelled. Raises the first call's error."""
    reply, trouble = await ask(), ""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(frame(reply, address, datetime.now(), trouble), refresh=True)
            await asyncio.sleep(every_s)
            try:
                reply, trouble = await ask(), ""
            except SynerDiffError as error:
                trouble = error.message


def frame(reply: Reply, address: str, now: datetime, trouble: str = "") -> RenderableType:
    """One picture of the system. `trouble`: why there is no newer answer; empty: there is."""
    role = "leads" if reply.leader else "does not lead"
    head = Text(f"{address} {role} pool {reply.pool}, policy {reply.policy}  {now:%H:%M:%S}", style="bold")
    parts: list[RenderableType] = [head]
    if trouble:
        parts.append(Text(f"no answer: {trouble}", style="red", overflow="ellipsis", no_wrap=True))
    elif not reply.leader:
        parts.append(Text("slots, rows and thresholds are its leader's to tell", style="yellow"))
    parts += [_workers(reply), _queues(reply)]
    if reply.planning:
        parts.append(_planning(reply))
    return Group(*parts)


def _workers(reply: Reply) -> Table:
    table = _table(("worker", 20), ("kind", 4), ("domain", 12), ("slots", 7), ("rows", 4), ("run", 4), ("GPU", 5))
    table.add_column("state", no_wrap=True, width=8)
    for worker in reply.workers:
        slots = f"{worker.slots_used}/{worker.slots}" if worker.slots else ""
        share = f"{worker.mps_thread_percent}%" if worker.mps_thread_percent else ""
        name = (_end(worker.worker_id, 20), worker.kind, _end(worker.domain, 12))
        table.add_row(*name, slots, str(worker.rows or ""), str(worker.running), share, worker_state(worker))
    return table


def worker_state(worker: operations_pb2.WorkerStatus) -> Text:
    """Whether it works, in a word."""
    if worker.suspect or worker.draining:
        return Text("suspect", style="red") if worker.suspect else Text("draining", style="yellow")
    return Text("attached", style="green") if worker.attached else Text("away", style="red")


def _queues(reply: Reply) -> Table:
    table = _table(("queue of model", 30), ("waiting", 7), ("running", 7), ("decoding", 8), ("oldest", 9))
    for queue in reply.queues:
        counts = (queue.waiting, queue.running, queue.decoding)
        table.add_row(queue.model, *map(str, counts), f"{queue.oldest_age_s:.1f} s")
    return table


def _planning(reply: Reply) -> Table:
    table = _table(("planned in domain", 20), ("model", 18), ("size", 9), ("threshold", 9), ("knee", 4), ("drift", 6))
    for planning in reply.planning:
        threshold = f"{planning.threshold:.2f}" if planning.threshold else "none"
        if planning.profile_digest:
            size, knee, drift = (
                f"{planning.width}x{planning.height}",
                planning.knee_rows,
                f"{planning.profile_drift:.0%}",
            )
            table.add_row(_end(planning.domain, 20), planning.model, size, threshold, str(knee), drift)
        else:
            table.add_row(_end(planning.domain, 20), "no profile", "", threshold, "", "")
    return table


def _table(*columns: tuple[str, int]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    for heading, width in columns:
        table.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=width)
    return table


def _end(name: str, width: int) -> str:
    """The end of a long name: workers and GPUs of one system differ there."""
    return name if len(name) <= width else f"…{name[1 - width :]}"
