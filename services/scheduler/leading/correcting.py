"""Lets plans go by profiles as they turned out, between ticks."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from services.scheduler.engine.events import ProfileKnown
from services.scheduler.engine.holdings import Holdings
from services.scheduler.leading.observer import Observer
from services.scheduler.planner.cold_plans import ColdPlans
from services.scheduler.planner.plan_book import PlanBook

_PLAN_AGAIN, _PLAN_AGAIN_S = 64, 2.0  # queries, and seconds that a corrected profile waits for their plans


async def correct_profiles(
    holdings: Holdings, observer: Observer, plans: PlanBook, cold: ColdPlans, on: Callable[[ProfileKnown], None]
) -> None:
    """Replace the profiles that have drifted; made on another thread, since a table takes a while."""
    for domain, key, correction in observer.due(time.monotonic()):
        log_scales, old = correction.log_scales(), correction.current
        corrected = await asyncio.to_thread(correction.corrected, log_scales)
        # Have what was lately planned with the old one, so that no tick misses its plan.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PLAN_AGAIN_S):
                cold.submit(corrected, plans.queries(old.digest)[-_PLAN_AGAIN:])
                await cold.settled()
        if holdings.profiles.get((domain, key)) is correction.current:
            correction.adopt(corrected, log_scales, time.monotonic())
            on(ProfileKnown(domain, key, corrected))
