"""Exact pictures through all processes: the same files alone, in a crowd of others, and after both workers died."""

from dataclasses import replace

from bench.exact import files_of, in_a_crowd
from bench.load import send_all, slots_used
from bench.mixed_requests import mixed_requests
from tests.end_to_end.command import Up

REQUESTS = mixed_requests(10, seed=11, steps=(3, 6))
CLIENTS = 10


async def test_exact_pictures_are_the_same_to_the_byte_whatever_else_is_drawn(up: Up) -> None:
    exact = [replace(request, exact=True) for request in REQUESTS]
    alone = [files_of(answer) for answer in (await send_all(up.addresses[0], exact, clients=1)).answers]
    assert all(alone)
    crowd = await send_all(up.addresses[1], in_a_crowd(REQUESTS), clients=CLIENTS)
    assert [files_of(answer) for answer in crowd.answers[::2]] == alone
    assert all(answer.pictures for answer in crowd.answers[1::2])
    up.kill("unet", "vae")
    again = await send_all(up.addresses[0], in_a_crowd(REQUESTS[::-1]), clients=CLIENTS)
    assert [files_of(answer) for answer in again.answers[::2]] == alone[::-1]
    assert await slots_used(up.addresses) == 0
