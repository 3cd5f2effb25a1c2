"""How every command that asks a scheduler reaches one that serves TLS."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from synerdiff.tls import ServerTls
from tests.synerdiff_cli.fake_scheduler import FakeScheduler, synerdiff

PEM = Path(__file__).parents[1] / "synerdiff" / "tls"
COMMANDS = [
    ("generate", "a cat", "--detach"),
    ("jobs", "get", "job-1"),
    ("jobs", "watch", "job-1"),
    ("jobs", "cancel", "job-1"),
    ("jobs", "delete", "job-1"),
    ("models",),
    ("status",),
    ("trace", "-o", "trace.json"),
]


@pytest.fixture(scope="module")
def scheduler() -> Iterator[FakeScheduler]:
    """Asks its clients for a certificate."""
    fake = FakeScheduler(ServerTls(PEM / "server.pem", PEM / "server.key", client_ca=PEM / "ca.pem"))
    fake.script.succeed()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture(autouse=True)
def told(scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SYNERDIFF_ADDRESS", scheduler.address)
    monkeypatch.setenv("SYNERDIFF_TLS_CERTIFICATE", str(PEM / "client.pem"))
    monkeypatch.setenv("SYNERDIFF_TLS_KEY", str(PEM / "client.key"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synerdiff_cli.server._CONTACT_S", 0.5)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_knows_the_ca_by_its_option(command: tuple[str, ...]) -> None:
    result = synerdiff(*command, "--tls-ca", str(PEM / "ca.pem"))
    assert result.exit_code == 0, result.stderr


def test_and_by_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNERDIFF_TLS_CA", str(PEM / "ca.pem"))
    assert synerdiff("models").exit_code == 0


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ca", ["", "system", str(PEM / "other-ca.pem")])
def test_without_the_right_ca_the_scheduler_is_not_reached_and_why_is_guessed_at(ca: str) -> None:
    result = synerdiff("models", "--tls-ca", ca)
    assert result.exit_code == 3
    assert ("--tls-ca" if not ca else "not of the CA given") in result.stderr


@pytest.mark.usefixtures("impatient")
def test_a_scheduler_that_asks_for_a_certificate_is_not_reached_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CERTIFICATE", "KEY"):
        monkeypatch.setenv(f"SYNERDIFF_TLS_{name}", "")
    result = synerdiff("models", "--tls-ca", str(PEM / "ca.pem"))
    assert result.exit_code == 3


@pytest.mark.parametrize(
    ("ca", "key", "said"),
    [
        ("absent.pem", str(PEM / "client.key"), "--tls-ca: .*absent.pem: No such file"),
        ("ca.pem", str(PEM / "server.key"), "--tls-ca: .*client.pem and .*server.key are no certificate and its key"),
        ("ca.pem", "", "SYNERDIFF_TLS_KEY"),
    ],
)
def test_files_that_cannot_serve_are_refused(ca: str, key: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNERDIFF_TLS_KEY", key)
    result = synerdiff("models", "--tls-ca", str(PEM / ca))
    assert result.exit_code == 2
    assert re.search(said, result.stderr)
