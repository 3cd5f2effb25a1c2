"""How every process of SynerDiff serves and calls gRPC: limits, keepalive, TLS, health, reflection, errors, drain."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from synerdiff.errors import SynerDiffError
from synerdiff.interceptors import Check, ErrorInterceptor, let_all_in
from synerdiff.tls import ClientTls, ServerTls

MIB = 1 << 20
SERVICE_MESSAGE_BYTES = 64 * MIB

# Names for probes beside "" and the services' own: "startup" turns on with the first readiness and stays, "readiness"
# follows it, "liveness" does not depend on load or drain: it ends where only a new process can help.
STARTUP, READINESS, LIVENESS = "startup", "readiness", "liveness"

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def create_server(
    *,
    max_message_bytes: int = SERVICE_MESSAGE_BYTES,
    max_receive_bytes: int | None = None,
    max_connection_age_s: float | None = None,
    max_concurrent_rpcs: int | None = None,
    check: Check = let_all_in,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> grpc.aio.Server:
    """A server whose servicers may raise SynerDiffError.

    `max_receive_bytes` (default: `max_message_bytes`) bounds the memory that a stranger's message can take: a larger
    message is refused from its length prefix alone. `max_connection_age_s` makes clients resolve the name again now
    and then; running calls go on. `check` refuses forbidden calls before they are read. `interceptors` see errors as
    status codes already.
    """
    options: list[tuple[str, int]] = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_receive_bytes or max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Otherwise a second process on the same port silently takes half of the connections.
        ("grpc.so_reuseport", 0),
    ]
    if max_connection_age_s is not None:
        options.append(("grpc.max_connection_age_ms", round(max_connection_age_s * 1000)))
    return grpc.aio.server(
        interceptors=[*interceptors, ErrorInterceptor(check)],
        options=options,
        maximum_concurrent_rpcs=max_concurrent_rpcs,
    )


def open_channel(
    address: str,
    *,
    max_message_bytes: int = SERVICE_MESSAGE_BYTES,
    tls: ClientTls | None = None,
    round_robin: bool = False,
    through_proxy: bool = False,
) -> grpc.aio.Channel:
    """A channel to "host:port" (or any gRPC target, such as "dns:///name:port"); connects on first use.

    `round_robin` spreads calls over every address that the name resolves to. `through_proxy`: by way of the proxy that
    the environment names, if any; the processes of a deployment reach each other directly.
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", int(through_proxy)),
    ]
    if round_robin:
        options.append(("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'))
    if tls is not None:
        if tls.server_name:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        return grpc.aio.secure_channel(address, tls.credentials(), options=options)
    return grpc.aio.insecure_channel(address, options=options)


class ServiceHost:
    """One process's gRPC front: its services on one port, health and reflection beside them, and an orderly end.

    Add services, `start`, `set_ready(True)` once it can take work, `drain` at the end. Health is also served in
    plaintext on a port of its own, for probes that do not speak TLS; `start_health` before a long load.
    """

    def __init__(self, server: grpc.aio.Server | None = None, *, tls: ServerTls | None = None) -> None:
        """`server`: None is one of `create_server` with its defaults."""
        self.server = server or create_server()
        self.draining = asyncio.Event()
        self.address = ""
        self.health_address = ""
        self._tls = tls
        self._services: list[str] = []
        self._health = health.aio.HealthServicer()
        self._health_server: grpc.aio.Server | None = None
        self._was_ready = False
        self._withdrawn = False

    def add(self, service: str, add_to_server: Callable[[Any, Any], None], servicer: object) -> None:
        """Serve `servicer` as `service` (its full name, for health and reflection). Before `start`."""
        add_to_server(servicer, self.server)
        self._services.append(service)

    async def start_health(self, listen: str) -> None:
        """Answer probes in plaintext on `listen` ("": nowhere) from now on, before `start`: alive, not started yet.

        Raises SynerDiffError when the port cannot be bound.
        """
        await self._publish(ready=False)
        await self._health.set(LIVENESS, _SERVING)
        if listen:
            self._health_server = create_server(max_message_bytes=MIB)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_server)
            self.health_address = _bind(self._health_server, listen, None)
            await self._health_server.start()

    async def start(self, listen: str, health_listen: str = "") -> str:
        """Serve, not ready yet. Returns the bound "host:port". Raises SynerDiffError when a port cannot be bound.

        `health_listen`: as for `start_health`, which this calls unless the caller did.
        """
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        reflection.enable_server_reflection(
            [*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME], self.server
        )
        self.address = _bind(self.server, listen, self._tls)
        await self._publish(ready=False)
        if self._health_server is None:
            await self.start_health(health_listen)
        await self.server.start()
        return self.address

    async def set_ready(self, ready: bool) -> None:
        """Publish whether the process can take work. No effect once withdrawn."""
        if not self._withdrawn:
            await self._publish(ready)

    async def set_alive(self, alive: bool) -> None:
        """Publish whether this process still works; otherwise it has to be replaced."""
        await self._health.set(LIVENESS, _SERVING if alive else _NOT_SERVING)

    async def withdraw(self) -> None:
        """Not ready any more, for good; calls go on. `drain` begins with this; call it alone to act between the two."""
        self._withdrawn = True
        await self._publish(ready=False)

    async def drain(self, grace_s: float) -> None:
        """Withdraw and take no new calls; running ones have `grace_s` to end before they are cut."""
        await self.withdraw()
        self.draining.set()
        await self.server.stop(grace_s)
        if self._health_server is not None:
            await self._health_server.stop(0)

    async def _publish(self, ready: bool) -> None:
        self._was_ready = self._was_ready or ready
        await self._health.set(STARTUP, _SERVING if self._was_ready else _NOT_SERVING)
        for name in ("", READINESS, *self._services):
            await self._health.set(name, _SERVING if ready else _NOT_SERVING)


def bound_address(listen: str, port: int) -> str:
    """`listen` with the bound port in place of a port 0."""
    return f"{listen.rpartition(':')[0]}:{port}"


def _bind(server: grpc.aio.Server, listen: str, tls: ServerTls | None) -> str:
    try:
        port = server.add_secure_port(listen, tls.credentials()) if tls else server.add_insecure_port(listen)
    except RuntimeError as error:
        raise SynerDiffError(f"cannot listen on {listen!r}: is the address taken, or not HOST:PORT?") from error
    return bound_address(listen, port)


async def serving(channel: grpc.aio.Channel, service: str = "", timeout_s: float = 1.0) -> bool:
    """Whether the other end of `channel` answers health as SERVING."""
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
    except grpc.aio.AioRpcError:
        return False
    return bool(reply.status == _SERVING)
