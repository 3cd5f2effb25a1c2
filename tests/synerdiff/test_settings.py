"""Settings: which source wins, and what a bad one is told."""

from pathlib import Path

import pytest

from services.scheduler.settings import SchedulerSettings
from synerdiff.settings import ServiceSettings, load
from synerdiff.tls import ServerTls
from synerdiff.worker_settings import WorkerSettings

PEM = Path(__file__).parent / "tls"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNERDIFF_CONFIG", "")


def test_flags_win_over_variables_and_variables_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('pool = "file"\nunet_batch = 3\nvae_batch = 2\n')
    monkeypatch.setenv("SYNERDIFF_POOL", "variable")
    monkeypatch.setenv("SYNERDIFF_UNET_BATCH", "5")
    settings = load(SchedulerSettings, ["--config", str(file), "--pool", "flag"])
    assert (settings.pool, settings.unet_batch, settings.vae_batch) == ("flag", 5, 2)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--listen", "nowhere"], "--listen"),
        (["--listen", "127.0.0.1:99999"], "--listen"),
        (["--unet-batch", "0"], "--unet-batch"),
        (["--drain-grace-s", "nan-ish"], "--drain-grace-s"),
        (["--policy", "best"], "--policy"),
        (["--no-such-setting", "1"], "--no-such-setting"),
    ],
)
def test_a_bad_setting_is_named_and_ends_with_status_2(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        load(SchedulerSettings, flags)
    assert exit_.value.code == 2
    assert named in capsys.readouterr().err


CERTIFICATE = ["--tls-certificate", str(PEM / "server.pem")]
KEY = ["--tls-key", str(PEM / "server.key")]
CA = ["--tls-ca", str(PEM / "ca.pem")]


@pytest.mark.parametrize(
    ("settings", "flags", "named"),
    [
        (SchedulerSettings, CERTIFICATE, "--tls-certificate and --tls-key: "),
        (SchedulerSettings, KEY, "--tls-certificate and --tls-key: "),
        (SchedulerSettings, CA, "--tls-ca: "),
        (SchedulerSettings, ["--tls-client-ca", str(PEM / "ca.pem")], "--tls-client-ca: "),
        (SchedulerSettings, ["--tls-certificate", str(PEM / "worker.pem"), *KEY], "TLS: "),
        (WorkerSettings, [*CERTIFICATE, *KEY], "--tls-ca: a worker "),
    ],
)
def test_half_of_what_tls_needs_is_refused_in_one_line(
    settings: type[ServiceSettings], flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        load(settings, flags)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(named)
    assert said.count("\n") == 1


def test_workers_ask_everybody_for_a_certificate_and_schedulers_only_where_told() -> None:
    worker = load(WorkerSettings, [*CERTIFICATE, *KEY, *CA])
    assert worker.server_tls() == ServerTls(PEM / "server.pem", PEM / "server.key", client_ca=PEM / "ca.pem")
    scheduler = load(SchedulerSettings, [*CERTIFICATE, *KEY, *CA])
    assert scheduler.server_tls() == ServerTls(PEM / "server.pem", PEM / "server.key")
    assert scheduler.worker_tls() == worker.worker_tls()
    asking = load(SchedulerSettings, [*CERTIFICATE, *KEY, "--tls-client-ca", str(PEM / "other-ca.pem")])
    assert asking.server_tls() == ServerTls(PEM / "server.pem", PEM / "server.key", client_ca=PEM / "other-ca.pem")
    assert asking.worker_tls() is None
    assert load(SchedulerSettings, []).server_tls() is None


def test_an_empty_variable_names_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNERDIFF_TLS_CA", "")
    assert load(SchedulerSettings, []).tls_ca is None


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is not a file"):
        load(SchedulerSettings, ["--config", str(tmp_path / "none.toml")])


def test_mps_cannot_be_required_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        load(WorkerSettings, ["--require-mps"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "--require-mps: is of no use with --device cpu; CUDA MPS shares GPUs\n"
    assert load(WorkerSettings, ["--require-mps", "--device", "cuda:1"]).require_mps
