"""What each command refuses: at once, by name and with its exit code, before anything is asked, started or written."""

import sys
from pathlib import Path

import pytest

from synerdiff.redis_process import free_port
from tests.synerdiff_cli.fake_scheduler import Script, synerdiff

PAPER = Path(__file__).parents[2] / "bench" / "profiles" / "paper-table.json"
ROUND, SIMULATED = "plan --profile PAPER --unet", "simulate --profile PAPER"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("generate cat -o cat.tiff", "no suffix of a picture file"),
        ("generate cat -o nowhere/cat.png", "there is no folder nowhere"),
        ("generate cat --sampler magic", "sampler: 'magic' is unknown; one of: ddim, ddpm"),
        ("demo -o cat.gif", "no suffix of a picture file"),
        ("status --json --watch", "leave out --watch"),
        ("trace --plot trace.gif", "--plot: trace.gif has no suffix of a picture"),
        ("trace --plot nowhere/trace.png", "--plot: there is no folder nowhere"),
        ("trace -o nowhere/trace.json", "-o: there is no folder nowhere"),
        ("bench --rate 2 --burst 3", "--rate: there is also --burst"),
        ("bench --every-s 2 --burst 3", "--every-s: needs --burst and --seconds"),
        ("bench --burst 3 --seconds 2", "--seconds: is of no use"),
        ("bench --rate -1", "rate"),
        ("bench --sampler magic", "sampler"),
        ("bench --json nowhere/x.json", "--json: there is no folder nowhere"),
        ("bench --plot x.gif", "--plot: x.gif has no suffix of a picture"),
        ("bench --address a:1 --address a:1", "'a:1' comes twice"),
        ("profile --model nowhere", "--model: "),
        ("profile --chunks 1,x", "--chunks: '1,x' is not a list of numbers from 1 to 64"),
        ("profile --chunks 0", "--chunks: '0' is not a list"),
        ("profile --out nowhere/p.json", "--out: there is no folder"),
        ("profile --plot nowhere/p.png", "--plot: there is no folder"),
        ("profile --redis-url http://x", "--redis-url: 'http://x' is no Redis URL"),
        ("profile --bound 2", "bound"),
        ("profile --max-rows 0", "max-rows"),
        ("profile --budget-s 0", "budget-s"),
        ("profile --shares 70-30", "--shares: '70-30' is not UNET:VAE"),
        ("profile --shares 70:30 --threads 1", "leave --threads out"),
        (f"{ROUND} -1 --vae 1", "--unet: -1; must be at least 0"),
        (f"{ROUND} 1 --vae 129", "--vae: 129; at most 128"),
        (f"{ROUND} 0 --vae 0", "nothing to plan"),
        (f"{ROUND} 2 --vae 0 --skips 3", "together at most the 2"),
        (f"{ROUND} 2 --vae 0 --one-row 1 --skips 2", "together at most the 2"),
        (f"{ROUND} 2 --vae 0 --threshold 0", "--threshold: 0.0; must be over 0"),
        (f"{ROUND} 2 --vae 0 --threshold nan", "--threshold: nan; must be over 0"),
        (f"{ROUND} 2 --vae 0 --skip-price-ms nan", "--skip-price-ms: nan; must be at least 0"),
        (f"{SIMULATED} --policy magic", "--policy: 'magic'; one of static"),
        (f"{SIMULATED} --set knee=maybe", "--set knee: 'maybe'"),
        (f"{SIMULATED} --set need=1", "--set: need; known here: batching"),
        (f"{SIMULATED} --set controller.gin=1", "--set: controller.gin; known here: lowest"),
        (f"{SIMULATED} --set controller.gain=-1", "gain: -1.0; must be at least 0"),
        (f"{SIMULATED} --set urgency.pace=1", "--set: urgency.pace; known here: fair_factor"),
        (f"{SIMULATED} --set knee", "'knee' is not NAME=VALUE"),
        (f"{SIMULATED} --burst 3 --rate 1", "give one of them"),
        (f"{SIMULATED} --burst 3 --target-p99-s 1", "needs Poisson arrivals"),
        (f"{SIMULATED} --rate 0", "rate: 0.0; must be over 0"),
        (f"{SIMULATED} --steps-mix 8:a", "--steps-mix: '8:a'"),
        (f"{SIMULATED} --arrivals nowhere.csv", "nowhere.csv: No such file"),
    ],
)
def test_bad_options_are_refused_by_name(
    script: Script, command: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNERDIFF_DEVICE", "cpu")
    result = synerdiff(*command.replace("PAPER", str(PAPER)).split())
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert (script.requests, script.trace_domains, list(Path().iterdir())) == ([], [], [])


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("--model /nonexistent", 2, "no model_index.json"),
        ("--listen everywhere", 2, "is not HOST:PORT"),
        ("--redis-url http://x", 2, "is no Redis URL"),
        ("--profile p.json", 2, "99"),
        ("--listen 127.0.0.1:0 --redis-url redis://127.0.0.1:PORT", 3, "no Redis answers at redis://127"),
    ],
)
def test_options_of_up_that_cannot_work_end_it_with_one_line(
    command: str, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.json").write_text('{"version": 99}')
    result = synerdiff("up", *command.replace("PORT", str(free_port())).split(), "--data-dir", "data")
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
    assert said in result.stderr


def test_recorded_arrivals_that_are_not_there_are_named(script: Script) -> None:
    result = synerdiff("bench", "--times", "none.txt")
    assert result.exit_code != 0
    assert "none.txt" in result.stderr
    assert script.requests == []


def test_shares_of_a_gpu_need_mps(script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SYNERDIFF_DEVICE", "cuda")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    result = synerdiff("profile", "--shares", "70:30")
    assert (result.exit_code, "need CUDA MPS" in result.stderr) == (2, True)


def test_a_missing_matplotlib_is_named(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = synerdiff("trace", "--plot", "trace.png")
    assert result.exit_code == 2
    assert "pip install 'synerdiff[local]'" in result.stderr


def test_a_file_that_is_no_profile_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    result = synerdiff("plan", "--unet", "1", "--vae", "0", "--profile", str(tmp_path / "bad.json"))
    assert (result.exit_code, "bad.json: version: missing" in result.stderr) == (2, True)
