"""A stand-in for an S3 service: moto's, over real HTTP, in a process of its own that can be killed and restarted."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping

from tests.waiting import HANG_S

BUCKET = "pictures"


class S3Server:
    """Its contents are gone with it."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "MOTO_ACCOUNT_ID": "123456789012"},
        )
        give_up_at = time.monotonic() + HANG_S
        while not self._made_bucket():
            assert time.monotonic() < give_up_at, "the S3 server does not answer"
            time.sleep(0.05)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _made_bucket(self) -> bool:
        request = urllib.request.Request(f"{self.address}/{BUCKET}", method="PUT")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

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
    """One with an empty bucket."""
    server = S3Server(port)
    server.start()
    try:
        yield server
    finally:
        server.kill()
