"""Bounds on items of a domain and batch key: they stay under the size for which memory did not suffice. Pure."""

from dataclasses import replace

from services.scheduler.engine.tasks import PlannedPart
from services.scheduler.policy.snapshots import BatchKey
from synerdiff.plans import ItemTiming
from synerdiff.profiles import ItemCaps, Profile

UNBOUNDED = ItemCaps(1 << 20, 1 << 20)


class MemoryBounds:
    """Bounds on items by domain and batch key, learned from items that a worker had to run in halves.

    They hold for as long as a leadership: the next leader learns anew.
    """

    def __init__(self) -> None:
        self._caps: dict[tuple[str, BatchKey], ItemCaps] = {}

    def of(self, domain: str, key: BatchKey) -> ItemCaps:
        """The bounds on one key's items."""
        return self._caps.get((domain, key), UNBOUNDED)

    def of_domain(self, domain: str) -> dict[BatchKey, ItemCaps]:
        """All that are known of a domain."""
        return {key: caps for (where, key), caps in self._caps.items() if where == domain}

    def forget(self, domain: str) -> None:
        """Forget a domain's."""
        self._caps = {place: caps for place, caps in self._caps.items() if place[0] != domain}

    def within(self, domain: str, key: BatchKey, profile: Profile) -> Profile:
        """The profile with its caps lowered to the bounds; itself where they are not reached."""
        caps = profile.caps.within(self.of(domain, key))
        return profile if caps == profile.caps else replace(profile, caps=caps)

    def learn(self, domain: str, kind: str, items: tuple[ItemTiming, ...], planned: PlannedPart) -> set[BatchKey]:
        """Take up a report of a "unet" or "vae" worker, and what it was asked. Returns the keys with lower bounds now.

        Never below one task or decode: that is what is tried whatever memory there is.
        """
        lowered = set()
        for timing, item in zip(items, planned.items, strict=False):
            key = item.key or planned.key
            if not timing.halved or key is None:
                continue
            known, fits = self.of(domain, key), timing.halved - 1
            if kind == "unet":
                caps = known.within(ItemCaps(max(1, fits // 2), known.vae))
            else:
                caps = known.within(ItemCaps(known.unet, max(1, fits)))
            if caps != known:
                self._caps[domain, key] = caps
                lowered.add(key)
        return lowered
