"""The tokenizer: a small byte-level BPE with CLIP's conventions (</w>, <|startoftext|>, <|endoftext|>)."""

import json
import random
from pathlib import Path
from typing import Any

from captions import caption
from networks import MAX_TOKENS
from pictures import COLOURS
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

WORD_END = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
VOCABULARY_SIZE = 2000
CAPTIONS_PER_PICTURE = 30


def make_tokenizer(meta: list[dict[str, Any]], folder: Path) -> CLIPTokenizer:
    """Train the tokenizer on captions and save it in `folder`; a later leg keeps the first leg's vocabulary."""
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_files(_learn_merges(_corpus(meta)), folder)
        CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def _corpus(meta: list[dict[str, Any]]) -> list[str]:
    rng = random.Random(0)
    colours = list(COLOURS)
    captions = [caption(emoji, rng.choice(colours), rng) for emoji in meta for _ in range(CAPTIONS_PER_PICTURE)]
    tags = [tag.lower() for emoji in meta for tag in emoji["tags"]]
    return captions + tags + [colour for colour in colours for _ in range(50)]


def _learn_merges(corpus: list[str]) -> list[tuple[str, str]]:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=WORD_END, continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=4,
        end_of_word_suffix=WORD_END,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def _write_files(merges: list[tuple[str, str]], folder: Path) -> None:
    """Vocabulary in CLIP's order: 256 bytes, 256 bytes that end a word, merges, specials."""
    byte_tokens = list(bytes_to_unicode().values())
    tokens = [*byte_tokens, *(token + WORD_END for token in byte_tokens), *("".join(merge) for merge in merges)]
    vocabulary = {token: index for index, token in enumerate([*dict.fromkeys(tokens), START, END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "do_lower_case": True,
        "add_prefix_space": False,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
