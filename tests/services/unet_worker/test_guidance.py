import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.unet_worker.guidance import GuidanceRows
from tests.rounding import assert_rounded


@given(guided=st.lists(st.booleans(), min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_each_task_gets_what_it_would_get_alone(guided: list[bool], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(guided), 4, 2, 3, generator=generator)
    scales = torch.rand(len(guided), generator=generator) * 10 + 1
    rows = GuidanceRows.of(guided)
    expanded = rows.expand(latents)
    unconditional = -expanded[: sum(guided)]  # stands for a UNet that answers -x without a prompt and x**2 with one
    answered = torch.cat([unconditional, expanded[sum(guided) :] ** 2])

    mixed = rows.mix(answered, scales)

    assert rows.count == len(expanded) == len(guided) + sum(guided)
    for task, is_guided in enumerate(guided):
        x, w = latents[task], scales[task]
        expected = -x + w * (x**2 + x) if is_guided else x**2
        assert torch.equal(mixed[task], expected)


def test_rows_of_a_guided_task_are_in_the_order_of_a_diffusers_pipeline() -> None:
    rows = GuidanceRows.of([True])
    unconditional, conditional = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    mixed = rows.mix(torch.cat([unconditional, conditional]), torch.tensor([7.5]))
    assert mixed.item() == pytest.approx(7.5)


def test_a_predicted_task_has_the_difference_put_onto_its_one_row() -> None:
    rows = GuidanceRows.of([False, True, False], [True, False, False])
    conditional = torch.randn(3, 4, 2, 2)
    unconditional, predicted = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    answered = torch.cat([unconditional, conditional])

    mixed = rows.mix(answered, torch.tensor([3.0, 5.0, float("nan")]), predicted)

    assert rows.count == 4
    assert_rounded(mixed[0], conditional[0].double() + 2 * predicted[0].double())
    assert_rounded(mixed[1], -4 * unconditional[0].double() + 5 * conditional[1].double())
    assert torch.equal(mixed[2], conditional[2])
    assert torch.equal(rows.differences(answered), conditional[1:2] - unconditional)


def test_one_row_tasks_are_untouched() -> None:
    answered = torch.randn(3, 4, 2, 2)
    assert GuidanceRows.of([False] * 3).mix(answered, torch.full((3,), float("nan"))) is answered
