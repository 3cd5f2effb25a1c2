"""Two processes that wait for each other through a mapped file, and what becomes of it when one is killed."""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from synerdiff import pace as pace_module
from synerdiff.pace import PATIENCE_LOST, Pacer, PaceSide, PaceUnusable, SharedPace, check_paced
from synerdiff.plans import Execution, ItemRef
from tests.synerdiff.pace_process import partner
from tests.waiting import HANG_S, VirtualTime

pytestmark = pytest.mark.alone

SHM = Path("/dev/shm")
FOREVER_MS = HANG_S * 1000
LONGEST_SLEEP_MS = pace_module._LONGEST_SLEEP_S * 1000


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pace")


@pytest.fixture
def pace(directory: Path) -> Iterator[SharedPace]:
    made = SharedPace("pair-1", PaceSide.UNET, directory)
    yield made
    made.close()


@pytest.fixture
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    """What this side's waits go by."""
    virtual = VirtualTime()
    monkeypatch.setattr(pace_module, "time", virtual)
    return virtual


def lost() -> float:
    return float(PATIENCE_LOST._value.get())


def test_a_wait_ends_when_the_other_process_has_ended_the_item(pace: SharedPace, directory: Path) -> None:
    with partner("pair-1", directory) as other:
        other.send("wait", tick=7, place=2, patience_ms=FOREVER_MS)
        pace.ended(ItemRef(7, 1))
        assert not other.has_answered(within_s=0.05), "it went on before the item had ended"
        pace.ended(ItemRef(7, 2))
        assert other.answer() < FOREVER_MS, "it lost its patience"
        other.ask("ended", tick=8, place=1)
        assert pace.wait(ItemRef(7, 9), 0) == 0, "a later tick says that all items of the earlier ones have ended"
        assert pace.wait(ItemRef(8, 1), 0) == 0


def test_either_side_may_come_first(directory: Path) -> None:
    with partner("early", directory) as other:
        other.ask("ended", tick=1, place=1)
        late = SharedPace("early", PaceSide.UNET, directory)
        assert late.wait(ItemRef(1, 1), 0) == 0
        late.close()


def test_progress_never_goes_back(pace: SharedPace, directory: Path) -> None:
    other = SharedPace("pair-1", PaceSide.VAE, directory)
    pace.ended(ItemRef(5, 3))
    pace.ended(ItemRef(5, 2))
    assert other.wait(ItemRef(5, 3), 0) == 0
    other.close()


def test_an_absent_partner_costs_one_patience(pace: SharedPace, virtual_time: VirtualTime) -> None:
    before = lost()
    assert pace.wait(ItemRef(1, 1), 40) == pytest.approx(40)
    assert pace.wait(ItemRef(1, 2), FOREVER_MS) == 0
    assert lost() - before == 2


def test_a_killed_partner_costs_one_patience_and_may_come_back(
    pace: SharedPace, directory: Path, virtual_time: VirtualTime
) -> None:
    with partner("pair-1", directory) as other:
        other.ask("ended", tick=3, place=1)
        other.kill()
        assert pace.wait(ItemRef(3, 2), 30) == pytest.approx(30)
        assert pace.wait(ItemRef(4, 1), FOREVER_MS) == 0
    with partner("pair-1", directory) as again:
        again.ask("ended", tick=4, place=2)
        assert pace.wait(ItemRef(4, 2), 0) == 0
        assert pace.wait(ItemRef(5, 1), 30) == pytest.approx(30), "one that moves is waited for again"


def test_an_abandoned_wait_ends_at_once(pace: SharedPace, virtual_time: VirtualTime) -> None:
    waited_ms = pace.wait(ItemRef(1, 1), FOREVER_MS, lambda: virtual_time.now_s > 0.03)
    assert 30 < waited_ms <= 30 + LONGEST_SLEEP_MS


def test_words_are_read_whole(pace: SharedPace, directory: Path) -> None:
    rounds, reads, word = 100_000, set[int](), 0
    with partner("pair-1", directory) as other:
        while len(reads) <= 100:  # a busy machine may let the writer run alone
            first = (word >> 32) + 1
            other.send("count", first=first, rounds=rounds)
            while (word >> 32) < first + rounds - 1:
                word = pace._words[pace._other]
                assert word >> 32 == 0 or (word >> 32) & 0xFFFF == (word >> 16) & 0xFFFF == word & 0xFFFF, hex(word)
                reads.add(word)
            other.answer()


def test_the_handover_between_two_processes_takes_no_longer_than_a_nap(pace: SharedPace, directory: Path) -> None:
    """Whoever waits looks between naps, whose length here and now is measured; the clock is shared."""
    assert LONGEST_SLEEP_MS < 1
    rounds, ended_ns = 60, []
    with partner("pair-1", directory) as other:
        other.send("take_turns", rounds=rounds, work_ms=10, nap_ms=LONGEST_SLEEP_MS)
        for tick in range(1, rounds + 1):
            pace.wait(ItemRef(tick, 1), FOREVER_MS)
            time.sleep(0.01)
            ended_ns.append(time.monotonic_ns())
            pace.ended(ItemRef(tick, 1))
        turns = other.answer()
    handovers_ms = [(theirs - mine) / 1e6 for mine, theirs in zip(ended_ns, turns["woke_ns"], strict=True)]
    assert median(handovers_ms) < 3 * median(turns["naps_ms"])


@pytest.mark.parametrize("item", [ItemRef(1 << 48, 0), ItemRef(0, 1 << 16), ItemRef(-1, 0)])
def test_items_that_fit_no_word_are_refused(pace: SharedPace, item: ItemRef) -> None:
    with pytest.raises(ValueError, match="is not 0 to"):
        pace.ended(item)
    with pytest.raises(ValueError, match="is not 0 to"):
        pace.wait(item, 0)
    largest = ItemRef((1 << 48) - 1, (1 << 16) - 1)
    pace.ended(largest)


@pytest.mark.parametrize("name", ["", "a" * 65, "../up", "A", "a b", "a\n"])
def test_names_that_could_lead_elsewhere_are_refused(directory: Path, name: str) -> None:
    with pytest.raises(ValueError, match="pace"):
        SharedPace(name, PaceSide.UNET, directory)


def test_the_file_is_its_users_alone_and_goes_with_the_last_of_them(directory: Path) -> None:
    name = f"test-{os.getpid()}"
    first = SharedPace(name, PaceSide.UNET, SHM)
    [path] = SHM.glob(f"synerdiff-pace-*-{name}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = SharedPace(name, PaceSide.VAE, SHM)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


def test_what_the_killed_leave_behind_is_swept(directory: Path) -> None:
    with partner("left", directory) as other:
        [left] = directory.iterdir()
        SharedPace("other", PaceSide.UNET, directory).close()
        assert left.exists(), "a file in use was swept"
        other.kill()
    SharedPace("other", PaceSide.UNET, directory).close()
    assert list(directory.iterdir()) == []


def test_a_file_that_is_not_ours_is_not_used(directory: Path) -> None:
    pace = SharedPace("x", PaceSide.UNET, directory)
    [path] = directory.iterdir()
    pace.close()
    target = directory / "target"
    target.write_bytes(b"precious")
    path.symlink_to(target)
    with pytest.raises(PaceUnusable):
        SharedPace("x", PaceSide.UNET, directory)
    assert target.read_bytes() == b"precious"


def test_a_pacer_keeps_a_few_pairs_open_and_runs_free_without_one(directory: Path) -> None:
    pacer = Pacer(PaceSide.UNET, directory)
    for k in range(6):
        pacer.after(Execution(place=1, pace=f"pair-{k}"), tick=1)
    assert len(list(directory.iterdir())) == 4
    assert pacer.before(Execution(after=ItemRef(1, 1), patience_ms=5000), lambda: False) == 0
    partner_side = SharedPace("pair-5", PaceSide.VAE, directory)
    assert partner_side.wait(ItemRef(1, 1), 0) == 0
    partner_side.close()
    nowhere = Pacer(PaceSide.UNET, directory / "missing")
    unusable = Execution(after=ItemRef(1, 1), patience_ms=5000, pace="pair-1")
    assert nowhere.before(unusable, lambda: False) == 0
    nowhere.after(unusable, tick=1)
    nowhere.close()
    pacer.close()
    assert list(directory.iterdir()) == []
    assert os.path.isdir(directory)


@pytest.mark.parametrize(
    "wrong",
    [Execution(place=1 << 16, pace="a"), Execution(after=ItemRef(1 << 48, 1), pace="a"), Execution(pace="/etc")],
)
def test_plans_that_cannot_be_paced_are_refused_by_name(wrong: Execution) -> None:
    check_paced(1, [Execution(pace="a"), Execution(place=1 << 16)])
    with pytest.raises(ValueError, match=r"place|tick|pace"):
        check_paced(1, [Execution(pace="a"), wrong])
