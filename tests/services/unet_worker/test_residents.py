from collections.abc import Sequence

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.unet_worker.noise import TaskNoise
from services.unet_worker.residents import Resident, Residents, ResidentState
from services.unet_worker.sampler_table import SamplerTable
from services.unet_worker.tasks import DenoisingTask
from synerdiff.latents.arena import Arena, ArenaFull
from synerdiff.latents.memory import ProcessMemory
from synerdiff.models.device import open_device
from synerdiff.models.family import PromptEmbeds
from synerdiff.plans import SkippedEntry, SkipReason, SlotRef, UnetEntry
from tests.values import spec

SLOTS, CALLS, ELEMENTS = 3, 2, 4 * 2 * 2
IDS = st.sampled_from(["a/0", "b/0", "c/0", "d/0", "e/0"])


def arena() -> Arena:
    return Arena(SLOTS, ELEMENTS * 4, "float32", ProcessMemory())


def ready_task(value: float) -> DenoisingTask:
    """A task of two calls that halve its one register."""
    table = SamplerTable(
        timesteps=torch.zeros(CALLS),
        input_scale=torch.ones(CALLS),
        init_noise_sigma=1.0,
        matrix=torch.tensor([[[0.5, 0.0, 0.0]]] * CALLS),
        draws_noise=(False,) * CALLS,
        noise_dtype="model",
    )
    registers = torch.full((1, 4, 2, 2), value)
    noise = TaskNoise(0, (4, 2, 2), torch.float32, table)
    return DenoisingTask(spec(), PromptEmbeds(torch.zeros(1, 1)), None, table, registers, noise)


def step(task: DenoisingTask) -> None:
    task.advance(task.registers * 0.5)


def settled(residents: Residents, stepped: Sequence[Resident]) -> list[tuple[str, SlotRef]]:
    return residents.settle(residents.hand_over(stepped, open_device("cpu")))


class ResidentLife(RuleBasedStateMachine):
    """Admissions, steps, drops and failures in any order, with a drop possible in the middle of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = arena()
        self.residents = Residents(self.arena, torch.float32)
        self.model: dict[str, Resident] = {}
        self.stepping: list[Resident] = []

    @rule(task_id=IDS)
    def admit(self, task_id: str) -> None:
        if task_id in self.model:
            return
        if len(self.model) == SLOTS:
            with pytest.raises(ArenaFull):
                self.residents.admit(spec(task_id))
        else:
            self.model[task_id] = self.residents.admit(spec(task_id))

    @rule(task_id=IDS)
    def make_ready(self, task_id: str) -> None:
        resident = self.model.get(task_id)
        if resident is not None and resident.state is ResidentState.PREPARING:
            assert self.residents.make_ready(resident, ready_task(1.0))

    @rule(task_ids=st.lists(IDS, max_size=3))
    def drop(self, task_ids: list[str]) -> None:
        dropped = self.residents.drop(task_ids)
        assert sorted(dropped) == sorted({t for t in task_ids if t in self.model})
        for task_id in dropped:
            del self.model[task_id]

    @precondition(lambda self: not self.stepping)
    @rule(calls=st.lists(st.tuples(IDS, st.integers(0, CALLS)), max_size=5))
    def begin_step(self, calls: list[tuple[str, int]]) -> None:
        entries = [UnetEntry(task_id, call) for task_id, call in calls]
        self.stepping, skipped = self.residents.select(entries)
        assert len(self.stepping) + len(skipped) == len(entries)
        for resident in self.stepping:
            assert self.model[resident.spec.task_id] is resident
            assert resident.state is ResidentState.READY
        for misfit in skipped:
            assert (misfit.reason is SkipReason.UNKNOWN_TASK) == (misfit.task_id not in self.model)

    @precondition(lambda self: self.stepping)
    @rule(fails=st.booleans())
    def end_step(self, fails: bool) -> None:
        stepped, self.stepping = self.stepping, []
        if fails:
            for resident in stepped:
                assert self.residents.give_up(resident) == (self.model.get(resident.spec.task_id) is resident)
                if self.model.get(resident.spec.task_id) is resident:
                    del self.model[resident.spec.task_id]
            return
        for resident in stepped:
            assert resident.task is not None
            step(resident.task)
        for task_id, slot in settled(self.residents, stepped):
            assert self.model[task_id].slot == slot
            data = self.arena.read(slot)
            assert data is not None
            assert torch.frombuffer(bytearray(data), dtype=torch.float32).eq(0.5**CALLS).all()

    @invariant()
    def slots_are_those_of_residents(self) -> None:
        assert self.arena.free_slots == SLOTS - len(self.model)
        assert {r.task_id for r in self.residents.describe()} == set(self.model)

    @invariant()
    def only_finished_latents_are_readable(self) -> None:
        for resident in self.model.values():
            finished = resident.state is ResidentState.FINISHED
            assert (self.arena.read(resident.slot) is not None) == finished
            assert resident.describe().slot == (resident.slot if finished else None)


TestResidentLife = ResidentLife.TestCase


def admitted(residents: Residents, task_id: str) -> Resident:
    resident = residents.admit(spec(task_id))
    residents.make_ready(resident, ready_task(1.0))
    return resident


def test_entries_that_do_not_fit_are_skipped_with_the_reason() -> None:
    residents = Residents(arena(), torch.float32)
    fits = admitted(residents, "fits/0")
    moved_on = admitted(residents, "moved-on/0")
    assert moved_on.task is not None
    step(moved_on.task)
    residents.admit(spec("preparing/0"))

    chosen, skipped = residents.select(
        [UnetEntry(task, 0) for task in ("fits/0", "moved-on/0", "preparing/0", "gone/0", "fits/0")]
    )

    assert chosen == [fits]
    assert skipped == [
        SkippedEntry("moved-on/0", SkipReason.OTHER_CALL, 1),
        SkippedEntry("preparing/0", SkipReason.NOT_READY),
        SkippedEntry("gone/0", SkipReason.UNKNOWN_TASK),
        SkippedEntry("fits/0", SkipReason.OTHER_CALL, 1),
    ]


def test_a_task_dropped_while_it_is_stepped_leaves_its_slot_to_the_next_holder() -> None:
    holder = arena()
    residents = Residents(holder, torch.float32)
    old = admitted(residents, "old/0")
    for call in range(CALLS):
        stepping, _ = residents.select([UnetEntry("old/0", call)])
        assert old.task is not None
        step(old.task)
    residents.drop(["old/0"])
    others = [residents.admit(spec(f"new/{k}")) for k in range(SLOTS)]

    assert settled(residents, stepping) == []
    assert old.slot.index in {other.slot.index for other in others}
    assert all(holder.read(other.slot) is None for other in others)


def test_latents_go_into_their_slot_in_the_dtype_of_the_model() -> None:
    holder = Arena(SLOTS, ELEMENTS * 2, "bfloat16", ProcessMemory())
    residents = Residents(holder, torch.bfloat16)
    resident = admitted(residents, "a/0")
    assert resident.task is not None
    for _ in range(CALLS):
        step(resident.task)
    ((_, slot),) = settled(residents, [resident])
    data = holder.read(slot)
    assert data is not None
    assert torch.frombuffer(bytearray(data), dtype=torch.bfloat16).tolist() == [0.5**CALLS] * ELEMENTS
