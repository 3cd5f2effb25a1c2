"""The scheduler that a command calls: the options for its address, TLS and the caller's key, and calling it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import grpc
import typer
from google.protobuf.message import Message

from synerdiff.client.aio import DEFAULT_ADDRESS, AsyncClient, bearer
from synerdiff.client.follow import Metadata
from synerdiff.errors import Unavailable
from synerdiff.proxies import proxy_to
from synerdiff.rpc import open_channel
from synerdiff.status import from_rpc_error
from synerdiff.tls import BadTlsFiles, ClientTls, check_pem_files
from synerdiff.v1 import operations_pb2_grpc
from synerdiff_cli.console import EXIT_INVALID, errors_as_lines, fail, run

__all__ = ["DEFAULT_ADDRESS", "Address", "Server", "TlsCa", "asked", "connected", "server_at", "with_client"]

T = TypeVar("T")
_CONTACT_S = 3.0
# Instead of a file's name: the CAs that this machine trusts by default.
SYSTEM_CAS = "system"

Address = Annotated[
    str, typer.Option(help="HOST:PORT of a scheduler.", envvar="SYNERDIFF_ADDRESS", metavar="HOST:PORT")
]
TlsCa = Annotated[
    str,
    typer.Option(
        help=f"Call it over TLS, trusting the CA of this PEM file; {SYSTEM_CAS}: those this machine trusts.",
        envvar="SYNERDIFF_TLS_CA",
        metavar="FILE",
    ),
]


@dataclass(frozen=True)
class Server:
    """A scheduler's address, the TLS to call it with (None: plaintext), and the key to show ("": none)."""

    address: str
    tls: ClientTls | None = None
    key: str = field(default="", repr=False)

    def channel(self) -> grpc.aio.Channel:
        """A channel to it, for calls that pass `metadata`."""
        return open_channel(self.address, tls=self.tls, through_proxy=bool(proxy_to(self.address)))

    @property
    def metadata(self) -> Metadata:
        """The metadata of every call to it."""
        return bearer(self.key)


def server_at(address: str, tls_ca: str) -> Server:
    """The scheduler that the options name. Exits where they, or the variables of a client's certificate, cannot work.

    A client shows the certificate of SYNERDIFF_TLS_CERTIFICATE and SYNERDIFF_TLS_KEY where both are set, and the key
    of SYNERDIFF_KEY.
    """
    api_key = os.environ.get("SYNERDIFF_KEY", "")
    if not tls_ca:
        return Server(address, key=api_key)
    certificate, key = (os.environ.get(f"SYNERDIFF_TLS_{name}") for name in ("CERTIFICATE", "KEY"))
    if bool(certificate) != bool(key):
        fail("SYNERDIFF_TLS_CERTIFICATE and SYNERDIFF_TLS_KEY: one is of no use without the other", EXIT_INVALID)
    tls = ClientTls(
        ca=None if tls_ca == SYSTEM_CAS else Path(tls_ca),
        certificate=Path(certificate) if certificate else None,
        key=Path(key) if key else None,
    )
    try:
        check_pem_files(tls.certificate, tls.key, tls.ca)
    except BadTlsFiles as error:
        fail(f"--tls-ca: {error}", EXIT_INVALID)
    return Server(address, tls, api_key)


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator[AsyncClient]:
    """A client of the deployment at `server`. Raises Unavailable soon when no scheduler answers."""
    async with server.channel() as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), _CONTACT_S)
        except TimeoutError:
            where = server.address + (f" through the proxy {proxy}" if (proxy := proxy_to(server.address)) else "")
            raise Unavailable(f"no scheduler answers at {where}; {_what_may_help(server)}") from None
    async with AsyncClient(server.address, key=server.key, tls=server.tls) as client:
        yield client


def with_client(address: str, tls_ca: str, ask: Callable[[AsyncClient], Coroutine[Any, Any, T]]) -> T:
    """The result of a command's work with a client of the deployment. An error is printed as a line, and exits."""
    server = server_at(address, tls_ca)

    async def work() -> T:
        async with connected(server) as client:
            return await ask(client)

    with errors_as_lines():
        return run(work())


def _what_may_help(server: Server) -> str:
    if server.tls is None:
        return "start one with `synerdiff up`, name its place with --address, or its CA with --tls-ca"
    return "or it serves no TLS, its certificate is not of the CA given, or it asks for a client's certificate"


async def asked(server: Server, method: str, request: Message, timeout_s: float) -> Any:
    """The answer of the scheduler's Operations service. Raises the SynerDiffError that it answers, or Unavailable."""
    async with connected(server), server.channel() as channel:
        try:
            call = getattr(operations_pb2_grpc.OperationsStub(channel), method)
            return await call(request, timeout=timeout_s, metadata=server.metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
