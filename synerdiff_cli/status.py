"""`synerdiff status` and `synerdiff models`: processes, queues, models and their bounds."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, NamedTuple

import typer
from google.protobuf.json_format import MessageToJson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from synerdiff.cards import ModelCard, Sampler
from synerdiff.client import Model
from synerdiff.errors import SynerDiffError
from synerdiff.v1 import operations_pb2
from synerdiff_cli.console import EXIT_INVALID, errors_as_lines, fail, out, plain_table, run
from synerdiff_cli.server import DEFAULT_ADDRESS, Address, Server, TlsCa, asked, server_at, with_client

Reply = operations_pb2.GetStatusResponse

_TIMEOUT_S = 10.0
_EVERY_S = 1.0
_SHOWN_DIGITS = 8  # of a digest


class Column(NamedTuple):
    """A column of a table. `width`: its most characters in the live picture of 80 columns; 0: it has no room there.

    `live`: only that picture has it.
    """

    heading: str
    cell: Callable[[Any], str | Text]
    width: int = 0
    live: bool = False


def status(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with the proto's field names.")] = False,
    watching: Annotated[bool, typer.Option("--watch", help="Show it live, until Ctrl-C.")] = False,
    address: Address = DEFAULT_ADDRESS,
    tls_ca: TlsCa = "",
) -> None:
    """Show the workers, queues and profiles of a running system."""
    if as_json and watching:
        fail("--json shows what is now: leave out --watch", EXIT_INVALID)
    ask = partial(_status, server_at(address, tls_ca))
    with errors_as_lines():
        if watching:
            run(watch(ask, Console(highlight=False), address))
        reply = run(ask())
    if as_json:
        out.print(MessageToJson(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
        return
    out.print(_head(reply, address))
    for table in _tables(reply):
        out.print(table)


def models(address: Address = DEFAULT_ADDRESS, tls_ca: TlsCa = "") -> None:
    """List the models that a running system knows."""
    found = with_client(address, tls_ca, lambda client: client.models())
    out.print(_models_table(found))
    for model in found:
        for line in _several_weights(model):
            out.print(line)


async def _status(server: Server) -> Reply:
    reply: Reply = await asked(server, "GetStatus", operations_pb2.GetStatusRequest(), _TIMEOUT_S)
    return reply


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
    """One picture of the system, in 80 columns. `trouble`: why there is no newer answer; empty: there is."""
    parts: list[RenderableType] = [Text(f"{_head(reply, address)}  {now:%H:%M:%S}", style="bold")]
    if trouble:
        parts.append(Text(f"no answer: {trouble}", style="red", overflow="ellipsis", no_wrap=True))
    elif not reply.leader:
        parts.append(Text("slots, rows and thresholds are its leader's to tell", style="yellow"))
    return Group(*parts, *_tables(reply, live=True))


def _head(reply: Reply, address: str) -> str:
    return f"{address} {'leads' if reply.leader else 'does not lead'} pool {reply.pool}, policy {reply.policy}"


def _tables(reply: Reply, *, live: bool = False) -> Iterator[Table]:
    yield _table(_WORKERS, reply.workers, live)
    yield _table(_QUEUES, reply.queues, live)
    if reply.planning:
        yield _table(_PLANNING, reply.planning, live)


def _table(columns: Iterable[Column], items: Iterable[Any], live: bool) -> Table:
    shown = [column for column in columns if (column.width if live else not column.live)]
    table = plain_table()
    for column in shown:
        fit: dict[str, Any] = (
            {"no_wrap": True, "overflow": "ellipsis", "max_width": column.width} if live else {"overflow": "fold"}
        )
        table.add_column(column.heading, **fit)
    for item in items:
        cells = [(column.cell(item), column.width if live else 0) for column in shown]
        table.add_row(*(_end(cell, width) if isinstance(cell, str) else cell for cell, width in cells))
    return table


def _end(name: str, width: int) -> str:
    """The end of a long name: workers and GPUs of one system differ there."""
    return name if len(name) <= width or not width else f"…{name[1 - width :]}"


def _state(worker: operations_pb2.WorkerStatus) -> Text:
    """Its state, in a word."""
    if worker.suspect or worker.draining:
        return Text("suspect", style="red") if worker.suspect else Text("draining", style="yellow")
    return Text("attached", style="green") if worker.attached else Text("away", style="red")


def _profiled(cell: Callable[[operations_pb2.PlanningStatus], str], without: str = "") -> Callable[[Any], str]:
    """A cell whose value needs a profile; `without` where there is none."""
    return lambda planning: cell(planning) if planning.profile_digest else without


def _age(made_at: str) -> str:
    """How long ago in the largest fitting unit; a text that is no time is returned unchanged."""
    try:
        made = datetime.fromisoformat(made_at)
    except ValueError:
        return made_at
    seconds = max(0.0, (datetime.now(UTC) - (made if made.tzinfo else made.replace(tzinfo=UTC))).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


_WORKERS = (
    Column("worker", lambda worker: worker.worker_id, 20),
    Column("kind", lambda worker: worker.kind, 4),
    Column("model", lambda worker: worker.model),
    Column("weights", lambda worker: worker.weights[:_SHOWN_DIGITS]),
    Column("domain", lambda worker: worker.domain, 12),
    Column("address", lambda worker: worker.address),
    Column("runs", lambda worker: ", ".join(filter(None, (worker.execution, worker.memory_format)))),
    Column("slots", lambda worker: f"{worker.slots_used}/{worker.slots}" if worker.slots else "", 7),
    Column("rows", lambda worker: str(worker.rows or ""), 4, live=True),
    Column("running", lambda worker: str(worker.running), 7),
    Column("GPU", lambda worker: f"{worker.mps_thread_percent}%" if worker.mps_thread_percent else "", 5, live=True),
    Column("state", _state, 8),
)
_QUEUES = (
    Column("queue of model", lambda queue: queue.model, 30),
    Column("waiting", lambda queue: str(queue.waiting), 7),
    Column("running", lambda queue: str(queue.running), 7),
    Column("decoding", lambda queue: str(queue.decoding), 8),
    Column("oldest waits", lambda queue: f"{queue.oldest_age_s:.1f} s", 12),
)
_PLANNING = (
    Column("domain", lambda planning: planning.domain, 20),
    Column("model", _profiled(lambda planning: planning.model, "none"), 18),
    Column("size", _profiled(lambda planning: f"{planning.width}x{planning.height}"), 9),
    Column("threshold", lambda planning: f"{planning.threshold:.2f}" if planning.threshold else "none", 9),
    Column("knee rows", _profiled(lambda planning: str(planning.knee_rows)), 9),
    Column("profile", _profiled(lambda planning: planning.profile_digest)),
    Column("origin", _profiled(lambda planning: planning.profile_origin)),
    Column("age", _profiled(lambda planning: _age(planning.profile_made_at))),
    Column("drift", _profiled(lambda planning: f"{planning.profile_drift:.0%}"), 6),
)


def _models_table(found: tuple[Model, ...]) -> Table:
    table = plain_table("model", "family", "size", "multiple of", "up to", "steps", "guidance", "sampler", "available")
    for model in found:
        card = model.card
        sizes = (f"{card.native_width}x{card.native_height}", str(card.size_multiple), str(card.max_side))
        defaults = (str(card.default_num_inference_steps), f"{card.default_guidance_scale:g}")
        available = "yes" if model.available else "no"
        table.add_row(card.name, card.family, *sizes, *defaults, _default_sampler(card), available)
    return table


def _several_weights(model: Model) -> Iterator[str]:
    """A line for each kind of worker that serves a model with more than one digest of weights."""
    for kind in sorted({one.kind for one in model.weights}):
        first, *others = [one for one in model.weights if one.kind == kind]
        if others:
            old = ", ".join(f"{one.digest[:_SHOWN_DIGITS]} (by {one.workers})" for one in others)
            newest = f"{first.digest[:_SHOWN_DIGITS]} (by {first.workers})"
            yield f"{model.card.name}: {kind} workers draw new requests with weights {newest}, older ones with {old}"


def _default_sampler(card: ModelCard) -> str:
    """The sampler of requests that name none; it says where that is the model's own or replaces the model's own."""
    name = card.default_sampler.name.lower()
    if card.scheduler_refused:
        return f"{name}, in place of {card.scheduler}"
    return f"{name}: {card.scheduler}" if card.default_sampler is Sampler.OWN else name
