"""A gateway as a platform runs it: settings that cannot work, TLS on both sides, and an orderly end."""

import asyncio
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from services.gateway.process import main
from services.gateway.settings import GatewaySettings
from synerdiff.redis_process import free_port
from synerdiff.settings import load
from synerdiff.tls import ServerTls
from synerdiff.v1 import images_pb2
from tests.services.gateway.deployment import PATH, ROOT, Door, asking, running_gateway
from tests.synerdiff_cli.fake_scheduler import FakeScheduler
from tests.waiting import HANG_S, until, wait_until

PEM = ROOT / "tests" / "synerdiff" / "tls"
DRAW = {"prompt": "x"}


@pytest.fixture
def fake() -> Iterator[FakeScheduler]:
    scheduler = FakeScheduler()
    scheduler.start()
    yield scheduler
    scheduler.stop()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--listen", "everywhere"], "--listen: 'everywhere' is not HOST:PORT"),
        (["--tls-ca", "/none.pem"], "/none.pem: No such file"),
        (["--tls-certificate", str(PEM / "client.pem")], "one is of no use without the other"),
        (["--max-open-requests", "0"], "--max-open-requests: Input should be greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_work_end_it_with_one_line(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        load(GatewaySettings, flags)
    said = capsys.readouterr().err
    assert (end.value.code, said.count("\n")) == (2, 1)
    assert words in said


def test_a_port_that_is_taken_ends_it_with_one_line(fake: FakeScheduler, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--listen", fake.address]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot listen on '{fake.address}'" in line


def test_aliases_and_the_rest_come_by_flag_and_by_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    by_flag = load(GatewaySettings, ["--model-aliases", "a=x", "--model-aliases", "b=y"])
    monkeypatch.setenv("SYNERDIFF_MODEL_ALIASES", '{"a": "x", "b": "y"}')
    assert by_flag.model_aliases == load(GatewaySettings, []).model_aliases == {"a": "x", "b": "y"}


def test_it_serves_https_and_calls_schedulers_by_tls(tmp_path: Path) -> None:
    scheduler = FakeScheduler(ServerTls(PEM / "server.pem", PEM / "server.key"))
    scheduler.start()
    scheduler.script.succeed()
    port = free_port()
    files = ["--https-certificate", str(PEM / "server.pem"), "--https-key", str(PEM / "server.key")]
    flags = ["--listen", f"127.0.0.1:{port}", "--scheduler", scheduler.address, "--tls-ca", str(PEM / "ca.pem"), *files]
    process = subprocess.Popen([sys.executable, "-m", "services.gateway", *flags], cwd=ROOT, stderr=subprocess.DEVNULL)
    context = ssl.create_default_context(cafile=PEM / "ca.pem")
    try:
        with httpx2.Client(base_url=f"https://127.0.0.1:{port}", verify=context, timeout=HANG_S) as http:
            wait_until(lambda: _is_ready(http), "a gateway over TLS")
            assert http.post(PATH, json=DRAW).status_code == 200
    finally:
        process.terminate()
        assert process.wait(HANG_S) == 0
        scheduler.stop()


def _is_ready(http: httpx2.Client) -> bool:
    try:
        return bool(http.get("/readyz").status_code == 200)
    except httpx2.TransportError:
        return False


async def test_sigterm_lets_what_is_under_way_end_and_takes_nothing_new(fake: FakeScheduler, tmp_path: Path) -> None:
    fake.script.happen(queued=images_pb2.Queued())
    fake.script.hangs = True
    with running_gateway(fake.address, tmp_path) as door:
        reader, writer = await asking(door, {**DRAW, "stream": True})
        assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HANG_S)
        door.process.send_signal(signal.SIGTERM)
        await until(lambda: any(line["event"] == "draining" for line in door.lines()))
        await until(lambda: _refuses(door))
        assert door.process.poll() is None, "it has not waited for what is under way"
        writer.close()
        assert await asyncio.to_thread(door.process.wait, HANG_S) == 0
    assert fake.script.cancelled == ["job-1"]


async def test_what_outlasts_the_grace_is_cut(fake: FakeScheduler, tmp_path: Path) -> None:
    fake.script.happen(queued=images_pb2.Queued())
    fake.script.hangs = True
    with running_gateway(fake.address, tmp_path, "--drain-grace-s", "1") as door:
        _, writer = await asking(door, {**DRAW, "stream": True})
        await until(lambda: fake.script.requests)
        door.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(door.process.wait, HANG_S) == 0
        writer.close()
    assert fake.script.cancelled == ["job-1"]


def _refuses(door: Door) -> bool:
    try:
        door.get("/healthz")
    except httpx2.TransportError:
        return True
    return False


def test_metrics_name_routes_and_never_what_strangers_ask_for(canned: tuple[Door, object]) -> None:
    door, _ = canned
    door.get("/nothing/of/this/kind")
    door.get("/v1/models/no-such-model")
    text = door.get("/metrics").text
    assert 'synerdiff_gateway_requests_total{route="/v1/models/{name:path}",status="404"}' in text
    assert "nothing" not in text
    assert "no-such-model" not in text
