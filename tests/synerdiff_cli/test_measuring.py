"""What `synerdiff profile` measures: splits of a device, which `--shares` names, and the process of fidelity.

GPUs are a stand-in for the MPS daemon; the process of fidelity is canned: what it says on the way, finds, and fails of.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from synerdiff import mps
from synerdiff.skip_cfg import SkipCfgBudget
from synerdiff_cli import measuring
from synerdiff_cli.deployment import BUNDLED_MODEL, LocalOptions, ModelSource, OptionError, plan_deployment
from synerdiff_cli.measuring import (
    Measured,
    Shares,
    Split,
    parse_shares,
    pictures_per_s,
    splits_of,
    thread_counts,
    with_note,
)
from tests.mps_daemon import fake_daemon
from tests.services.scheduler.measured_profiles import profile
from tests.values import CARD

CANNED = """
import json, pathlib, sys
assert sys.argv[1::2] == ["--model", "--out", "--floor-db", "--dtype"], sys.argv
print("loading")
for done in (1, 2):
    print(json.dumps({"done": done, "total": 2, "eta_s": 2 - done}), flush=True)
pathlib.Path(sys.argv[4]).write_text(json.dumps({"budget": BUDGET}))
"""

Can = Callable[[str], None]


def options(tmp_path: Path) -> LocalOptions:
    return LocalOptions(tmp_path, (ModelSource("emoji", BUNDLED_MODEL),), schedulers=0)


def test_splits_are_percent_for_unet_and_vae() -> None:
    assert parse_shares("70:30, 60:40,70:30,100:100") == (Shares(70, 30), Shares(60, 40), Shares(100, 100))


@pytest.mark.parametrize(
    "text", ["70", "70:30,", "70:30;60:40", "0:100", "101:10", "70:-1", "seventy:30", "7:3:0", " "]
)
def test_a_bad_list_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="is not UNET:VAE in percent from 1 to 100 each, as 70:30,60:40"):
        parse_shares(text)


@pytest.mark.parametrize(
    ("split", "cores", "unet", "vae"),
    [
        ((70, 30), 2, 1, 1),
        ((70, 30), 10, 7, 3),
        ((90, 10), 2, 1, 1),
        ((50, 50), 3, 2, 1),
        ((99, 1), 8, 7, 1),
        ((100, 100), 4, 4, 4),
        ((70, 30), 1, 1, 1),
        ((30, 30), 10, 3, 3),
    ],
)
def test_on_a_cpu_a_share_is_threads(split: tuple[int, int], cores: int, unet: int, vae: int) -> None:
    assert thread_counts(Shares(*split), cores) == {"unet": unet, "vae": vae}


def test_shares_that_come_to_the_same_threads_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "usable_cores", lambda: 2)
    found = splits_of(options(tmp_path), parse_shares("100:100,70:30,50:50"), "cpu")
    assert [(split.label, split.fixed) for split in found] == [("100:100", False), ("70:30, 50:50", True)]
    deployment = plan_deployment(found[1].local)
    threads = {child.name: child.command[child.command.index("--threads") + 1] for child in deployment.children[1:]}
    assert threads == {"unet-emoji-0": "1", "vae-emoji-0": "1"}


def test_shares_and_threads_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="leave --threads out"):
        splits_of(replace(options(tmp_path), threads=2), parse_shares("70:30"), "cpu")


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with fake_daemon(tmp_path, percent="80.0") as daemon:
        for name, value in daemon.environ.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_a_share_is_what_mps_lets_a_worker_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "10")  # of whoever types the command: no bound of workers
    (split,) = splits_of(options(tmp_path), parse_shares("70:30"), "cuda:0")
    children = plan_deployment(split.local).children
    percents = {child.name: child.environment.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE") for child in children}
    assert percents == {"redis": None, "unet-emoji-0": "70", "vae-emoji-0": "30"}
    assert all("HF_HUB_OFFLINE" in child.environment for child in children[1:])


@pytest.mark.usefixtures("gpu")
def test_more_than_mps_allows_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"90:10 is more than the 80 % .*a client can only lower it"):
        splits_of(options(tmp_path), parse_shares("70:30,90:10"), "cuda")


def test_without_mps_a_gpu_cannot_be_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr(mps, "DEFAULT_PIPE_DIRECTORY", str(tmp_path))
    with pytest.raises(OptionError, match="on cuda they need CUDA MPS, and there is no control daemon"):
        splits_of(options(tmp_path), parse_shares("70:30"), "cuda")


def test_the_best_split_makes_the_most_pictures(tmp_path: Path) -> None:
    slow = profile()
    fast = slow.with_cells(replace(c, median_ms=c.median_ms / 2, p90_ms=c.p90_ms / 2) for c in slow.cells)
    card = replace(CARD, default_num_inference_steps=20, default_guidance_scale=4.0)
    assert pictures_per_s(fast, card) == pytest.approx(2 * pictures_per_s(slow, card))
    assert pictures_per_s(slow, card) < pictures_per_s(slow, replace(card, default_guidance_scale=1.0))
    found = [
        Measured(Split((shares,), options(tmp_path)), made, pictures_per_s(made, card))
        for shares, made in ((Shares(60, 40), fast), (Shares(70, 30), slow))
    ]
    assert with_note(found).notes[-1].startswith("shares 60:40 made the most pictures per second at best (60:40: ")
    assert with_note(found[:1]) is fast


@pytest.fixture
def canned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Can:
    """Says what the process's code is."""
    monkeypatch.setattr(measuring, "MODULE", "canned_fidelity")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(code: str) -> None:
        (tmp_path / "canned_fidelity.py").write_text(code)

    return write


async def test_progress_is_passed_on_and_the_budget_read(canned: Can) -> None:
    budget = {"predictor": "reuse", "share": 0.5, "longest_run": 1, "measured_db": 41.5}
    canned(CANNED.replace("BUDGET", repr(budget)))
    told: list[tuple[int, int, float]] = []
    found = await measuring.measured_budget(Path("m"), "float32", lambda *progress: told.append(progress))
    assert found == SkipCfgBudget("reuse", 0.5, 1, measured_db=41.5)
    assert told == [(1, 2, 1), (2, 2, 0)]


async def test_no_budget_is_an_answer(canned: Can) -> None:
    canned(CANNED.replace("BUDGET", "None"))
    assert await measuring.measured_budget(Path("m"), "float32", lambda *progress: None) is None


async def test_a_failure_is_told_with_its_last_words(canned: Can) -> None:
    canned("import sys\nsys.exit('there is no such model')")
    with pytest.raises(measuring.MeasuringFailed, match="exit status 1\nthere is no such model"):
        await measuring.measured_budget(Path("m"), "float32", lambda *progress: None)
