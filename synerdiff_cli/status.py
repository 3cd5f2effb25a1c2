"""`synerdiff status` and `synerdiff models`: processes, queues, models and their bounds."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.table import Table

from synerdiff.cards import ModelCard, Sampler
from synerdiff.client import Model
from synerdiff.v1 import operations_pb2
from synerdiff_cli.console import EXIT_INVALID, errors_as_lines, fail, out, plain_table, run
from synerdiff_cli.server import DEFAULT_ADDRESS, Address, Server, TlsCa, asked, server_at, with_client
from synerdiff_cli.status_watch import watch, worker_state

_TIMEOUT_S = 10.0
_SHOWN_DIGITS = 8  # of a digest


def status(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with the proto's field names.")] = False,
    watching: Annotated[bool, typer.Option("--watch", help="Show it live, until Ctrl-C.")] = False,
    address: Address = DEFAULT_ADDRESS,
    tls_ca: TlsCa = "",
) -> None:
    """Show the workers, queues and profiles of a running system."""
    if as_json and watching:
        fail("--json shows what is now: leave out --watch", EXIT_INVALID)
    with errors_as_lines():
        if watching:
            run(watch(partial(_status, server_at(address, tls_ca)), Console(highlight=False), address))
        reply = run(_status(server_at(address, tls_ca)))
    if as_json:
        out.print(MessageToJson(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
        return
    role = "leads" if reply.leader else "does not lead"
    out.print(f"{address} {role} pool {reply.pool}, policy {reply.policy}")
    out.print(_workers(reply))
    out.print(_queues(reply))
    if reply.planning:
        out.print(_planning(reply, datetime.now(UTC)))


def models(address: Address = DEFAULT_ADDRESS, tls_ca: TlsCa = "") -> None:
    """List the models that a running system knows."""
    found = with_client(address, tls_ca, lambda client: client.models())
    out.print(_models_table(found))
    for model in found:
        for line in _several_weights(model):
            out.print(line)


async def _status(server: Server) -> operations_pb2.GetStatusResponse:
    reply: operations_pb2.GetStatusResponse = await asked(
        server, "GetStatus", operations_pb2.GetStatusRequest(), _TIMEOUT_S
    )
    return reply


def _workers(reply: operations_pb2.GetStatusResponse) -> Table:
    names = ("worker", "kind", "model", "weights", "domain", "address")
    table = plain_table(*names, "runs", "state", "slots", "running")
    for worker in reply.workers:
        slots = f"{worker.slots_used}/{worker.slots}" if worker.slots else ""
        held = worker.weights[:_SHOWN_DIGITS]
        place = (worker.worker_id, worker.kind, worker.model, held, worker.domain, worker.address)
        runs = ", ".join(filter(None, (worker.execution, worker.memory_format)))
        table.add_row(*place, runs, worker_state(worker), slots, str(worker.running))
    return table


def _queues(reply: operations_pb2.GetStatusResponse) -> Table:
    table = plain_table("queue of model", "waiting", "running", "decoding", "oldest waits (s)")
    for queue in reply.queues:
        counts = (queue.waiting, queue.running, queue.decoding)
        table.add_row(queue.model, *map(str, counts), f"{queue.oldest_age_s:.1f}")
    return table


def _planning(reply: operations_pb2.GetStatusResponse, now: datetime) -> Table:
    table = plain_table("domain", "model", "size", "threshold", "knee rows", "profile", "origin", "age", "drift")
    for planning in reply.planning:
        threshold = f"{planning.threshold:.2f}" if planning.threshold else "none"
        if not planning.profile_digest:
            table.add_row(planning.domain, "", "", threshold, "", "none", "", "", "")
            continue
        size = f"{planning.width}x{planning.height}"
        profile = (planning.profile_digest, planning.profile_origin, _age(planning.profile_made_at, now))
        drift = f"{planning.profile_drift:.0%}"
        table.add_row(planning.domain, planning.model, size, threshold, str(planning.knee_rows), *profile, drift)
    return table


def _age(made_at: str, now: datetime) -> str:
    """How long ago in the largest fitting unit; as it is written where it is no time."""
    try:
        made = datetime.fromisoformat(made_at)
    except ValueError:
        return made_at
    seconds = max(0.0, (now - (made if made.tzinfo else made.replace(tzinfo=UTC))).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


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
    """The sampler that requests get which name none: whose it is, where it is the model's own or stands in for that."""
    name = card.default_sampler.name.lower()
    if card.scheduler_refused:
        return f"{name}, in place of {card.scheduler}"
    return f"{name}: {card.scheduler}" if card.default_sampler is Sampler.OWN else name
