"""Exact pictures through all processes: the same files alone as in a crowd; and after deaths, in test_double_death."""

from bench.exact import Files, files_of, in_a_crowd
from bench.load import send_all
from bench.status import slots_used
from tests.end_to_end.command import Up
from tests.end_to_end.conftest import EXACT


async def test_exact_pictures_are_the_same_to_the_byte_whatever_else_is_drawn(up: Up, alone: list[Files]) -> None:
    crowd = await send_all(up.addresses[1], in_a_crowd(EXACT), clients=len(EXACT))
    assert [files_of(answer) for answer in crowd.answers[::2]] == alone
    assert all(answer.pictures for answer in crowd.answers[1::2])
    assert await slots_used(up.addresses) == 0
