"""How long planning takes: cold, warm, and to work out how long items take.

    python -m bench.planning [--profile FILE] [--threshold 0.95] [--repeats 5]

For each number of UNet tasks, decodes and skips: the time to plan a round from nothing, and to look it up once it is
known, key included; CPU time, the least of `repeats`. Without --profile: the paper's two.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from services.scheduler.planner.item_times import item_times
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.planner.planned_round import PlanQuery
from services.scheduler.planner.planner import plan_round
from synerdiff.profiles import Profile, load

FOLDER = Path(__file__).parent / "profiles"
SHAPES = ((4, 1, 0), (8, 2, 0), (8, 6, 0), (8, 6, 4), (16, 2, 8), (16, 8, 0), (16, 8, 8), (32, 8, 16), (64, 16, 0))
_WARM_LOOKUPS = 1000


def least_ms(repeats: int, work: Callable[[], object]) -> float:
    """The least CPU time of `work`: it is one thread's, and what other processes do meanwhile does not count."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return 1000 * min(times)


def table(path: Path, threshold: float, repeats: int) -> Table:
    """Cold and warm times over the shapes."""
    profile = load(path)
    first_ms = least_ms(1, lambda: [item_times(profile, chunks) for chunks in profile.chunk_counts])
    chunks = ", ".join(map(str, profile.chunk_counts))
    title = f"caps {profile.caps.unet} and {profile.caps.vae}, chunks {chunks}\nitem times once {first_ms:.1f} ms"
    printed = Table(title=f"{path.name}\nthreshold {threshold:g}, {title}", title_justify="left")
    for heading in ("UNet", "decodes", "skips", "cold ms", "warm us"):
        printed.add_column(heading, justify="right")
    for unet, vae, skips in SHAPES:
        query = PlanQuery(unet, vae, skips, threshold=threshold)
        cold_ms = least_ms(repeats, lambda query=query: plan_round(profile, query))  # type: ignore[misc]
        printed.add_row(str(unet), str(vae), str(skips), f"{cold_ms:.1f}", f"{_warm_us(profile, query, repeats):.1f}")
    return printed


def _warm_us(profile: Profile, query: PlanQuery, repeats: int) -> float:
    book = PlanBook(solve_now=True)
    book.lookup(profile, query)

    def look_up() -> None:
        for _ in range(_WARM_LOOKUPS):
            book.lookup(profile, PlanQuery(*query))

    return 1000 * least_ms(repeats, look_up) / _WARM_LOOKUPS


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, action="append")
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for path in options.profile or sorted(FOLDER.glob("paper-table*.json")):
        Console().print(table(path, options.threshold, options.repeats))


if __name__ == "__main__":
    main()
