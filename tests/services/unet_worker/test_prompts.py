import threading
from collections.abc import Sequence
from typing import cast

import torch
from hypothesis import given
from hypothesis import strategies as st

from services.unet_worker.preparation import MAX_ENCODE_BATCH, EmbeddingCache, PromptEncoder, PromptKey
from synerdiff.models.family import PromptEmbeds, UnetSide


class CountingSide:
    """Stands for a UnetSide: an embedding is as many floats as its prompt has letters."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def encode(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        self.batches.append(list(prompts))
        return [PromptEmbeds(torch.full((1, len(prompt)), 1.0)) for prompt in prompts]

    def encode_negative(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        self.batches.append(list(prompts))
        return [PromptEmbeds(torch.full((1, len(prompt)), -1.0)) for prompt in prompts]


def encoder(side: CountingSide, capacity_bytes: int) -> PromptEncoder:
    return PromptEncoder(cast(UnetSide, side), capacity_bytes)


def key(text: str, is_negative: bool = False) -> PromptKey:
    return PromptKey(text, is_negative)


@given(capacity=st.integers(0, 200), lengths=st.lists(st.integers(1, 12), max_size=60))
def test_the_cache_keeps_its_bound_and_what_came_last(capacity: int, lengths: list[int]) -> None:
    cache = EmbeddingCache(capacity)
    newest: dict[PromptKey, PromptEmbeds] = {}
    for length in lengths:
        prompt, embeds = key("x" * length), PromptEmbeds(torch.zeros(1, length))
        cache.put(prompt, embeds)
        newest[prompt] = embeds
        fits = embeds.nbytes + length <= capacity
        assert cache.get(prompt) is (embeds if fits else None)
        held = [k for k in newest if cache.get(k) is newest[k]]
        assert len(held) == len(cache)
        assert cache.bytes == sum(newest[k].nbytes + len(k.text) for k in held) <= capacity


def test_the_least_recently_used_prompt_goes_first() -> None:
    cache = EmbeddingCache(2 * (4 + 1))
    one, two, three = (PromptEmbeds(torch.zeros(1, 1)) for _ in range(3))
    cache.put(key("a"), one)
    cache.put(key("b"), two)
    assert cache.get(key("a")) is one
    cache.put(key("c"), three)
    assert cache.get(key("b")) is None
    assert cache.get(key("a")) is one
    assert cache.get(key("c")) is three


def test_waiting_prompts_are_encoded_in_one_batch_and_once() -> None:
    side = CountingSide()
    prompts = encoder(side, 10_000)
    first = prompts.encode([key("apple"), key("", True), key("pear"), key("", True), key("apple")])
    assert side.batches == [["apple", "pear"], [""]]
    assert first.encoded == {key("apple"), key("pear"), key("", True)}
    assert first.encode_ms > 0

    again = prompts.encode([key("pear"), key("", True)])
    assert len(side.batches) == 2
    assert again.encoded == frozenset()
    assert again.encode_ms == 0
    assert again.embeds[key("pear")] is first.embeds[key("pear")]


def test_an_absent_negative_prompt_is_not_an_empty_prompt() -> None:
    prompts = encoder(CountingSide(), 10_000)
    embeds = prompts.encode([key("x"), key("x", True)]).embeds
    assert embeds[key("x")].hidden.item() == 1
    assert embeds[key("x", True)].hidden.item() == -1


def test_large_batches_are_split() -> None:
    side = CountingSide()
    encoder(side, 0).encode([key(f"prompt {k}") for k in range(MAX_ENCODE_BATCH + 1)])
    assert [len(batch) for batch in side.batches] == [MAX_ENCODE_BATCH, 1]


def test_many_threads_keep_the_bound() -> None:
    side = CountingSide()
    prompts = encoder(side, 300)

    def work(offset: int) -> None:
        for k in range(200):
            text = "x" * (1 + (k * 7 + offset) % 20)
            assert prompts.encode([key(text)]).embeds[key(text)].hidden.shape == (1, len(text))
            assert prompts.cache.bytes <= 300

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < prompts.cache.bytes <= 300
