import socket
import struct
import threading
from collections.abc import Iterator

import pytest
import redis.exceptions
import uvloop

from synerdiff.redis_client import connect


@pytest.fixture
def resetting_port() -> Iterator[int]:
    """Something that answers the first byte of a connection and resets it while more is being written."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1)
                connection.sendall(b"-DENIED\r\n")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_a_connection_reset_amid_its_greeting_reads_as_redis_away_on_uvloop(resetting_port: int) -> None:
    async def ping() -> None:
        async with connect(f"redis://127.0.0.1:{resetting_port}/0") as client:
            await client.ping()

    with pytest.raises(redis.exceptions.ConnectionError):
        uvloop.run(ping())
