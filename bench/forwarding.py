"""A port whose connections lead elsewhere, as those of a Service of Kubernetes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable

_CHUNK_BYTES = 1 << 16


@contextlib.asynccontextmanager
async def forwarding(ports: Callable[[], Iterable[int]]) -> AsyncIterator[int]:
    """Yields the port. `ports`: asked for each connection, which goes to the first that takes it, or ends."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for port in ports():
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_connection("127.0.0.1", port)
                with contextlib.suppress(asyncio.CancelledError):  # connections end with the event loop at the latest
                    await asyncio.gather(_carry(reader, back), _carry(there, writer))
                return
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=4096)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
