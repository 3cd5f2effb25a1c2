"""`synerdiff profile`: one run with real workers, and its plot."""

import asyncio
from dataclasses import replace
from pathlib import Path

from services.scheduler.profiles.store import ProfileStore
from synerdiff.host import usable_cores
from synerdiff.profiles import Profile, load
from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess
from synerdiff_cli.profile_display import plot_profile
from tests.services.scheduler.measured_profiles import profile
from tests.synerdiff_cli.fake_scheduler import synerdiff


def test_a_run_measures_every_split_writes_the_best_and_keeps_all(redis_server: RedisProcess, tmp_path: Path) -> None:
    out = tmp_path / "emoji.json"
    few = ("--quick", "--max-rows", "2", "--max-decodes", "1", "--bound", "1", "--budget-s", "1")
    where = ("--out", str(out), "--redis-url", redis_server.url)
    result = synerdiff("profile", "--compile", "off", "--dtype", "float32", "--shares", "100:100,1:1", *few, *where)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == [str(out)]
    best = load(out)
    assert (best.subject.model, best.subject.dtype, best.subject.latent_shape) == ("emoji", "float32", (4, 16, 16))
    assert best.subject.device
    under = {f"{usable_cores()} + {usable_cores()} threads", "1 + 1 threads"}

    async def kept() -> dict[str, Profile | None]:
        async with connect(redis_server.url) as redis:
            store = ProfileStore(redis)
            return {shares: await store.get(replace(best.subject, shares=shares)) for shares in under}

    profiles = asyncio.run(kept())
    assert replace(best, notes=best.notes[:-1]) == profiles[best.subject.shares]
    for shares, made in profiles.items():
        assert made is not None, f"{shares} was not kept"
        assert f"{shares} " in result.stderr
        assert {(cell.rows, cell.decodes) for cell in made.cells} == {(2, 0), (0, 1), (2, 1)}
        assert all(cell.samples >= 3 and cell.peak_bytes > 50_000_000 for cell in made.cells)


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    plot_profile(profile(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
