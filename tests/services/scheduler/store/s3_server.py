"""A stand-in for an S3 service: moto's, over real HTTP, that can be away and come back."""

import contextlib
import urllib.request
from collections.abc import Iterator, Mapping

from moto.server import ThreadedMotoServer

from tests.waiting import HANG_S

BUCKET = "pictures"


class S3Server:
    """One with a bucket."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self._port = port

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()
        urllib.request.urlopen(urllib.request.Request(f"{self.address}/{BUCKET}", method="PUT"), timeout=HANG_S).close()

    def stop(self) -> None:
        self._server.stop()

    @property
    def environment(self) -> Mapping[str, str]:
        """What tells a client of it."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
        }


@contextlib.contextmanager
def s3_server(port: int) -> Iterator[S3Server]:
    server = S3Server(port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
