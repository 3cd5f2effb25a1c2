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
from synerdiff.profiles import Profile

_PLAN_AGAIN, _PLAN_AGAIN_S = 64, 2.0  # queries, and seconds that a corrected profile waits for their plans


class ProfileCorrector:
    """One per leadership: what the observer has learned becomes the profiles that plans go by."""

    def __init__(
        self,
        holdings: Holdings,
        observer: Observer,
        plans: PlanBook,
        cold_plans: ColdPlans,
        on: Callable[[ProfileKnown], None],
    ) -> None:
        self._holdings = holdings
        self._observer = observer
        self._plans = plans
        self._cold_plans = cold_plans
        self._on = on

    async def correct(self) -> None:
        """Replace the profiles that have drifted; made on another thread, since a table takes a while."""
        for domain, key, correction in self._observer.due(time.monotonic()):
            log_scales = correction.log_scales()
            corrected = await asyncio.to_thread(correction.corrected, log_scales)
            await self._plan_again(correction.current, corrected)
            if self._holdings.profiles.get((domain, key)) is correction.current:
                correction.adopt(corrected, log_scales, time.monotonic())
                self._on(ProfileKnown(domain, key, corrected))

    async def _plan_again(self, old: Profile, corrected: Profile) -> None:
        """Have for a corrected profile what was lately planned with the old one, so that no tick misses its plan."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PLAN_AGAIN_S):
                self._cold_plans.submit(corrected, self._plans.queries(old.digest)[-_PLAN_AGAIN:])
                await self._cold_plans.settled()
