"""The policy: one code path for every `PolicySpec`. Pure: its memory holds earlier results alone."""

from collections.abc import Iterable, Sequence
from itertools import chain, repeat, zip_longest

from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.planner.planned_round import MOST_COUNT, PlanQuery, RoundReason
from services.scheduler.policy.admitting import joining, whole_requests
from services.scheduler.policy.ordering import decodes_in_order
from services.scheduler.policy.policy_spec import PolicyBounds, PolicySpec, paces_of
from services.scheduler.policy.rounds import (
    Rules,
    RunningSet,
    Work,
    decodes_first,
    even_skips,
    filled,
    plain_unet_batches,
    running_set,
)
from services.scheduler.policy.snapshots import (
    Admission,
    BatchKey,
    DecodePart,
    DomainSnapshot,
    Item,
    PoolSnapshot,
    ReadyDecode,
    TickPlan,
    UnetLane,
    VaeBatch,
    VaeLane,
)
from synerdiff.profiles import ItemCaps, Profile

# A UNet worker and the VAE worker it is planned together with, if there is one.
_Pair = tuple[UnetLane, VaeLane | None]


class ConfiguredPolicy:
    """A policy as its spec says: the same snapshot gives the same answer.

    `rounds` answers the queries of the programme; without it, no programme is planned.
    """

    def __init__(self, spec: PolicySpec, bounds: PolicyBounds, rounds: PlanBook | None = None) -> None:
        self.spec = spec
        self.bounds = bounds
        self._rounds = rounds

    @property
    def name(self) -> str:
        """Its name in settings."""
        return self.spec.name

    def admit(self, snapshot: PoolSnapshot) -> tuple[Admission, ...]:
        """Which waiting tasks to place, and where."""
        paces = paces_of((key, profile) for (_, key), profile in snapshot.profiles.items())
        admissions: list[Admission] = []
        for model in sorted({lane.model for lane in snapshot.unet}):
            if self.spec.batching == "step":
                admissions += joining(snapshot, model, self.spec, self.bounds, paces)
            else:
                cohorts = self.spec.batching == "cohort"
                admissions += whole_requests(snapshot, model, cohorts, self.bounds.unet_batch)
        return tuple(admissions)

    def plan(self, snapshot: DomainSnapshot) -> TickPlan:
        """The next tick of a domain; no items when there is nothing to do."""
        return _Tick(self.spec, self.bounds, self._rounds, snapshot).plan()

    def plan_ahead(self, profile: Profile | None) -> int:
        """Plans under way per worker: 1 plans on the latest reports, more keeps workers from waiting for plans."""
        return self.spec.mechanisms(profile).plan_ahead

    @property
    def grows_from(self) -> int:
        """Tasks of a first batch, where batches grow; 0 where they do not."""
        return self.bounds.unet_batch if self.spec.grows else 0


class _Tick:
    """One tick being planned."""

    def __init__(
        self, spec: PolicySpec, bounds: PolicyBounds, rounds: PlanBook | None, snapshot: DomainSnapshot
    ) -> None:
        self._spec, self._bounds, self._rounds, self._snapshot = spec, bounds, rounds, snapshot
        self._threshold = snapshot.threshold if spec.controller else spec.threshold
        paces = paces_of(snapshot.profiles.items(), self._threshold)
        self._rules = Rules(spec, bounds, paces, snapshot.budgets, snapshot.profiles, snapshot.ahead)
        self._in_step: list[bool] = []
        self._why: list[str] = []

    def plan(self) -> TickPlan:
        """Every model's part, one after the other."""
        items: list[Item] = []
        models = {lane.model for lane in self._snapshot.unet} | {lane.model for lane in self._snapshot.vae}
        for model in sorted(models):
            items += self._model_items(model)
        in_step = bool(self._in_step) and all(self._in_step)
        return TickPlan(tuple(items), in_step, self._threshold, "; ".join(self._why))

    def _model_items(self, model: str) -> list[Item]:
        unet = sorted((lane for lane in self._snapshot.unet if lane.model == model), key=lambda lane: lane.worker_id)
        vae = [lane for lane in self._snapshot.vae if lane.model == model]
        decodes = decodes_in_order(self._due_decodes(model), self._snapshot.now_ms, self._snapshot.ahead)
        if not self._planned(unet, decodes):
            return self._free_items(unet, sorted(vae, key=lambda lane: (lane.decoding, lane.worker_id)), decodes)
        vae = sorted(vae, key=lambda lane: lane.worker_id)
        pairs = list(zip(unet, chain(vae, repeat(None)), strict=False))
        return self._planned_items(pairs, vae[len(unet) :], decodes)

    def _due_decodes(self, model: str) -> list[ReadyDecode]:
        """Those that may be decoded now: whole requests and cohorts are decoded once all of them are denoised."""
        decodes = [decode for decode in self._snapshot.decodes if decode.key.model == model]
        if self._spec.batching == "step":
            return decodes
        denoising = any(lane.undecoded for lane in self._snapshot.unet if lane.model == model)
        return [decode for decode in decodes if not denoising or decode.domain != self._snapshot.domain]

    def _planned(self, unet: Sequence[UnetLane], decodes: Sequence[ReadyDecode]) -> bool:
        """Whether both lanes are planned together. The programme needs a profile of every batch key; without one,
        workers that share cores take turns."""
        if not unet or self._spec.planning == "none":
            return False
        if self._spec.planning == "decodes_first" or any(lane.shares_cores for lane in unet):
            return True
        keys = {task.key for lane in unet for task in lane.running} | {decode.key for decode in decodes}
        return self._rounds is not None and all(key in self._snapshot.profiles for key in keys)

    # ---- free running

    def _free_items(self, unet: Sequence[UnetLane], vae: Sequence[VaeLane], decodes: list[ReadyDecode]) -> list[Item]:
        """Steps and decodes side by side, neither waiting for the other."""
        steps = []
        for lane in unet:
            if lane.wants_plan:
                running = self._running_set(lane)
                for key in running.batch_keys():
                    work = self._work((lane, None), running, key, ())
                    steps += plain_unet_batches(work, self._caps(key, lane).unet)
        return [Item(u, v) for u, v in zip_longest(steps, self._plain_decodes(vae, decodes))]

    def _plain_decodes(self, lanes: Iterable[VaeLane], decodes: list[ReadyDecode]) -> list[VaeBatch]:
        """For each worker with room: the first decode and those that share its batch key."""
        batches, left = [], list(decodes)
        for lane in lanes:
            if left and lane.wants_plan:
                together = [d for d in left if d.key == left[0].key][: self._caps(left[0].key).vae]
                left = [d for d in left if d not in together]
                batches.append(VaeBatch(lane.worker_id, tuple(DecodePart(d.task_id) for d in together)))
        return batches

    # ---- planned rounds

    def _planned_items(
        self, pairs: Sequence[_Pair], others: Sequence[VaeLane], decodes: list[ReadyDecode]
    ) -> list[Item]:
        """A round for every pair that is due one; the VAE workers that are left over decode plainly."""
        items: list[Item] = []
        left = list(decodes)
        due = [(unet, vae) for unet, vae in pairs if self._is_due(unet)]
        takers = sum(lane.wants_plan for lane in (*(vae for _, vae in due if vae), *others))
        for unet, vae in due:
            share: list[ReadyDecode] = []
            if vae and vae.wants_plan:
                count = min(-(-len(left) // takers), self._spec.round_decodes)
                share, left, takers = left[:count], left[count:], takers - 1
            items += self._round((unet, vae), share)
        return items + [Item(None, batch) for batch in self._plain_decodes(others, left)]

    def _is_due(self, lane: UnetLane) -> bool:
        """Whether a round is to be planned now; the report of the work under way asks again.

        Nothing is planned past the last call of a task: its decode would wait for a whole round more, which is longer
        than the worker waits for the plan.
        """
        ending = lane.undecoded - lane.preparing - len(lane.running)
        if self._spec.await_ends and ending > 0:
            return False
        return lane.wants_plan or not lane.running

    def _round(self, pair: _Pair, decodes: Sequence[ReadyDecode]) -> list[Item]:
        """One round per batch key: those with decodes alone first, being the shortest, then in order of urgency."""
        lane, _ = pair
        running = self._running_set(lane) if lane.running else RunningSet((), False, 0)
        keys = running.batch_keys()
        decode_keys = dict.fromkeys(decode.key for decode in decodes)
        items: list[Item] = []
        for key in (*(key for key in decode_keys if key not in keys), *keys):
            work = self._work(pair, running, key, tuple(decode for decode in decodes if decode.key == key))
            items += self._key_round(lane, work, key, running.busy)
        if items:
            self._why.append(
                f"{lane.worker_id}: {len(running.seats)} step, {running.set_aside} set aside, "
                f"{len(decodes)} decode, {'busy' if running.busy else 'at ease'}"
            )
        return items

    def _key_round(self, lane: UnetLane, work: Work, key: BatchKey, busy: bool) -> list[Item]:
        profile = self._snapshot.profiles.get(key)
        mechanisms = self._spec.mechanisms(profile, lane.shares_cores)
        self._in_step.append(mechanisms.in_step)
        prices = self._spec.skip_prices
        if self._spec.planning != "programme" or profile is None or self._rounds is None:
            return decodes_first(work, None, self._caps(key, lane))
        work = work.first(MOST_COUNT)
        query = PlanQuery(
            unet=len(work.seats),
            vae=len(work.decodes),
            skips=work.skips,
            one_row=work.one_row,
            threshold=self._threshold,
            skip_price_ms=(prices.busy_ms if busy else prices.idle_ms) if work.skips else 0.0,
            round_weight=self._spec.round_weight * len(work.seats),
            beside=mechanisms.beside,
            chunking=mechanisms.chunking,
        )
        planned = self._rounds.lookup(profile, query)
        reason = RoundReason(profile, query, planned)
        if planned is None:
            return decodes_first(work, profile, profile.caps, reason)
        return filled(planned, work, reason)

    # ---- both

    def _caps(self, key: BatchKey, lane: UnetLane | None = None) -> ItemCaps:
        """Most of one item, steps of this worker, where no profile says it."""
        most = ItemCaps(self._rules.batch(lane, key) if lane else self._bounds.unet_batch, self._bounds.vae_batch)
        return most.within(self._snapshot.memory.get(key, most))

    def _running_set(self, lane: UnetLane) -> RunningSet:
        return running_set(lane, self._snapshot.waiting, self._snapshot.now_ms, self._rules)

    def _work(self, pair: _Pair, running: RunningSet, key: BatchKey, decodes: tuple[ReadyDecode, ...]) -> Work:
        seats = running.of(key)
        price = self._spec.skip_prices.busy_ms if running.busy else self._spec.skip_prices.idle_ms
        skips = even_skips(seat.standing for seat in seats) if price < float("inf") else 0
        unet, vae = pair
        return Work(unet.worker_id, vae.worker_id if vae else "", seats, decodes, skips)
