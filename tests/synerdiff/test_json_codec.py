"""JSON of this version, of the one before it, and of a newer one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from synerdiff.cards import ModelCard, Sampler, SamplerLimits
from synerdiff.errors import InvalidRequest
from synerdiff.json_codec import JsonCodec
from synerdiff.profiles import load
from synerdiff.registry import WorkerRecord
from synerdiff.requests import ImageFormat, ImageRequest, Priority
from synerdiff.skip_cfg import SkipCfg, SkipCfgBudget, SkipCfgMode

STORED = Path(__file__).parent / "stored"  # as written before there was a codec
PROFILES = Path(__file__).parents[2] / "bench" / "profiles"

REQUESTS, CARDS = JsonCodec(ImageRequest, "request"), JsonCodec(ModelCard, "model card")
WORKERS = JsonCodec(WorkerRecord, "worker record")

REQUEST = ImageRequest(
    request_id="a request",
    model="emoji",
    prompt="a slice of pizza, naïve 🍕",
    negative_prompt="",
    width=128,
    height=64,
    num_inference_steps=20,
    guidance_scale=4.5,
    seed=2**63 + 1,
    sampler=Sampler.DPMSOLVER_MULTISTEP_KARRAS,
    num_images=3,
    image_format=ImageFormat.WEBP,
    priority=Priority.LOW,
    timeout_ms=60000,
    preview_every=5,
    skip_cfg=SkipCfg(SkipCfgMode.FIXED, 0.0, (2, 5)),
    timed=True,
    exact=True,
    unet_weights="sha256:u",
)
CARD = ModelCard(
    name="emoji",
    family="sd1",
    native_width=64,
    native_height=64,
    size_multiple=8,
    max_side=128,
    default_num_inference_steps=20,
    default_guidance_scale=4.5,
    default_sampler=Sampler.DPMSOLVER_MULTISTEP,
    samplers=(SamplerLimits(Sampler.DDIM, 1, 1000), SamplerLimits(Sampler.OWN, 1, 50, 2, -1)),
    max_prompt_tokens=77,
    prediction_type="epsilon",
    skip_cfg=SkipCfgBudget("reuse", 0.5, 2),
    latent_channels=4,
    scheduler="PNDMScheduler",
)
WORKER = WorkerRecord(
    worker_id="unet-1",
    kind="unet",
    address="10.0.0.1:50061",
    model_card=CARD,
    pool="default",
    domain="cpu:host",
    boot_id="host",
    pid=7,
    device="a CPU",
    dtype="bfloat16",
    model_digest="d",
    threads=2,
    execution="compiled",
    memory_format="channels_last",
    draining=True,
    weights="w",
    loaded_at_ms=1764000000000,
)

KEPT: list[tuple[str, JsonCodec[Any], Any]] = [
    ("request", REQUESTS, REQUEST),
    ("card", CARDS, CARD),
    ("worker", WORKERS, WORKER),
]


@pytest.mark.parametrize(("name", "codec", "value"), KEPT, ids=[name for name, _, _ in KEPT])
def test_what_was_stored_before_is_read_and_written_alike(name: str, codec: JsonCodec[Any], value: Any) -> None:
    text = (STORED / f"{name}.json").read_bytes()
    assert codec.parse(text, whole=True) == value
    assert json.loads(codec.dump(value)) == json.loads(text)
    assert codec.parse(codec.dump(value)) == value


@pytest.mark.parametrize(
    ("name", "digest"), [("emoji-epyc-2core-fp32", "234ddda24128f0eb"), ("paper-table", "aa0b84b20ff0612a")]
)
def test_profiles_keep_the_digests_that_they_had_before(name: str, digest: str) -> None:
    """A file written anew is the same file."""
    assert load(PROFILES / f"{name}.json").digest == digest


def of_request(**changes: object) -> str:
    return json.dumps(json.loads(REQUESTS.dump(REQUEST)) | changes)


@pytest.mark.parametrize("nothing", [None, False, 0, 0.0, "", [], {}])
def test_a_field_of_a_newer_version_that_says_nothing_is_ignored(nothing: object) -> None:
    skip_cfg = {"mode": "FIXED", "steps": [2, 5], "until": nothing}
    assert REQUESTS.parse(of_request(lora=nothing, skip_cfg=skip_cfg), whole=True) == REQUEST


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora": "emoji-3d", "width": None}, "width: None: .*lora: 'emoji-3d'; this version of SynerDiff does not"),
        ({"skip_cfg": {"mode": "AUTO", "until": 3}}, "skip_cfg.until: 3; this version"),
        ({"sampler": "SAMPLER_OF_TOMORROW"}, "sampler: 'SAMPLER_OF_TOMORROW': Input should be 'DDIM', "),
        ({"skip_cfg": {"mode": "NOW"}}, "skip_cfg.mode: 'NOW': Input should be 'AUTO', 'OFF' or 'FIXED'"),
        ({"seed": "1" * 200}, r"seed: '1{76}\.\.\.: Input should be a valid integer"),
    ],
)
def test_what_may_change_a_picture_is_refused_by_name(changes: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        REQUESTS.parse(of_request(**changes), whole=True)


def test_to_be_shown_a_request_of_a_newer_version_is_good_enough() -> None:
    assert REQUESTS.parse(of_request(lora="emoji-3d")) == REQUEST


def test_missing_fields_have_their_defaults_or_are_named() -> None:
    fields = json.loads(REQUESTS.dump(REQUEST))
    for name in ("skip_cfg", "timed", "exact", "unet_weights", "vae_weights"):
        del fields[name]
    assert not REQUESTS.parse(json.dumps(fields), whole=True).exact
    del fields["prompt"]
    with pytest.raises(InvalidRequest, match=r"^prompt: missing$"):
        REQUESTS.parse(json.dumps(fields))


def test_samplers_of_a_newer_version_are_left_out_of_a_card() -> None:
    fields = json.loads(CARDS.dump(CARD))
    fields["samplers"].insert(0, fields["samplers"][0] | {"sampler": "SAMPLER_OF_TOMORROW"})
    assert CARDS.parse(json.dumps(fields)) == CARD


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff"])
def test_what_is_no_value_is_refused_as_a_whole(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^model card: "):
        CARDS.parse(text)


@dataclass(frozen=True)
class Deep:
    numbers: tuple[tuple[int, ...], ...]


def test_a_place_in_a_list_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"^numbers\[1\]\[0\]: 'x': Input should be a valid integer$"):
        JsonCodec(Deep, "deep").parse('{"numbers": [[], ["x"]]}')
