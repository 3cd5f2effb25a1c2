"""What a gateway makes of a scheduler's answers, and what it hands on: before canned ones."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from services.gateway import sse
from synerdiff.errors import Cancelled, DeadlineExceeded, QueueFull, SynerDiffError, Unavailable
from synerdiff.v1 import images_pb2
from tests.services.gateway.deployment import PATH, Door, asking, running_gateway
from tests.synerdiff_cli.fake_scheduler import Script
from tests.waiting import HANG_S, until, wait_until

Canned = tuple[Door, Script]


def draw(door: Door, headers: dict[str, str] | None = None, **asked: object) -> httpx2.Response:
    return door.post(PATH, json={"prompt": "x", **asked}, headers=headers)


@pytest.mark.parametrize(
    ("error", "status", "code", "retries"),
    [
        (QueueFull("full", 2.5), 429, "queue_full", True),
        (Unavailable("gone"), 503, "unavailable", True),
        (DeadlineExceeded("late"), 504, "timeout", False),
        (Cancelled("cancelled"), 409, "job_cancelled", False),
        (SynerDiffError("broken"), 500, "internal_error", True),
    ],
)
def test_errors_have_a_status_that_openais_client_acts_on(
    canned: Canned, error: SynerDiffError, status: int, code: str, retries: bool
) -> None:
    door, script = canned
    script.error = error
    answer = draw(door)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="x") as client:
        assert client._should_retry(answer) is retries


def test_what_nobody_foresaw_is_an_internal_error_that_the_log_explains(canned: Canned) -> None:
    door, script = canned
    script.happen(image=images_pb2.Image(data=b"of no format"))
    answer = draw(door)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    (line,) = [line for line in door.lines() if line["event"] == "request failed"]
    assert str(line["error_id"]) in answer.json()["error"]["message"]
    assert "ImageFormat" in str(line["exception"])
    (answered,) = [line for line in door.lines() if line.get("request_id") == answer.headers["x-request-id"]]
    assert answered["status"] == 500


def test_a_full_queue_says_when_to_come_back(canned: Canned) -> None:
    door, script = canned
    script.error = QueueFull("10000 jobs wait", 2.5)
    answer = draw(door)
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("3", "2500")
    assert answer.json()["error"]["message"] == "10000 jobs wait"


def test_the_callers_key_and_trace_and_idempotency_key_are_handed_on(canned: Canned) -> None:
    door, script = canned
    script.succeed()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = draw(door, {"authorization": "Bearer sk-1", "traceparent": trace, "idempotency-key": "k"}, seed=3)
    assert answer.status_code == 200
    (request,), (metadata,) = script.requests, script.metadata
    assert (metadata["authorization"], metadata["traceparent"]) == ("Bearer sk-1", trace)
    assert (request.request_id, request.seed, answer.headers["x-request-id"]) == ("k", 3, "k")
    assert draw(door).status_code == 200
    assert "authorization" not in script.metadata[1]


def test_a_key_that_is_none_is_refused(canned: Canned) -> None:
    door, script = canned
    answer = draw(door, {"authorization": b"Bearer \xff"})  # type: ignore[dict-item]
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert script.requests == []


def test_what_is_asked_for_reaches_the_scheduler(canned: Canned) -> None:
    door, script = canned
    script.succeed(2)
    asked: dict[str, Any] = {"n": 2, "size": "128x64", "sampler": "ddim", "guidance_scale": 2.5, "skip_cfg": [3, 4]}
    draw(door, **asked, negative_prompt="y", num_inference_steps=9, output_format="jpeg", seed=2**63 - 2)
    (request,) = script.requests
    assert (request.prompt, request.negative_prompt, request.num_images) == ("x", "y", 2)
    assert (request.width, request.height, request.num_inference_steps) == (128, 64, 9)
    assert (request.sampler, request.image_format) == (images_pb2.SAMPLER_DDIM, images_pb2.IMAGE_FORMAT_JPEG)
    assert (request.guidance_scale, request.seed, request.preview_every) == (2.5, 2**63 - 2, 0)
    assert (request.skip_cfg.mode, list(request.skip_cfg.steps)) == (images_pb2.SKIP_CFG_MODE_FIXED, [3, 4])


def test_a_job_that_fails_under_way_ends_its_stream_with_an_error(canned: Canned) -> None:
    door, script = canned
    script.happen(queued=images_pb2.Queued())
    script.happen(failed=images_pb2.Failed(code=13, message="the device broke"))
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="x") as client:
        stream = client.images.generate(prompt="x", stream=True)
        with pytest.raises(openai.APIError, match="the device broke"):
            list(stream)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("key", ["", "mine"])
async def test_a_job_whose_client_hangs_up_is_cancelled_unless_it_can_come_back(
    canned: Canned, streamed: bool, key: str
) -> None:
    door, script = canned
    script.happen(queued=images_pb2.Queued())
    script.happen(started=images_pb2.Started())
    script.hangs = True
    reader, writer = await asking(door, {"prompt": "x", "stream": streamed}, key)
    await until(lambda: script.requests)
    if streamed:
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HANG_S)
    writer.close()
    await until(lambda: [line for line in door.lines() if line.get("request_id") == script.requests[0].request_id])
    if key:
        await asyncio.sleep(0.3)
        assert script.cancelled == []
    else:
        await until(lambda: script.cancelled)
        assert script.cancelled == ["job-1"]


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_job_is_cancelled_whose_client_hangs_up_before_its_first_event(canned: Canned, streamed: bool) -> None:
    door, script = canned
    script.late_s = 0.5
    script.happen(queued=images_pb2.Queued())
    script.hangs = True
    _, writer = await asking(door, {"prompt": "x", "stream": streamed})
    await until(lambda: script.requests)
    writer.close()
    await until(lambda: [line for line in door.lines() if line.get("request_id") == script.requests[0].request_id])
    assert script.cancelled == [], "its first event had come"
    await until(lambda: script.cancelled)
    assert script.cancelled == ["job-1"]


async def test_a_reader_that_is_slow_keeps_nobody_waiting(canned: Canned) -> None:
    """Each answer is larger than all that kernels and the gateway hold of it for somebody who does not read."""
    door, script = canned
    for index in range(10):
        script.happen(
            image=images_pb2.Image(
                index=index, width=64, height=64, format=images_pb2.IMAGE_FORMAT_PNG, data=bytes(1_200_000)
            )
        )
    script.happen(finished=images_pb2.Finished())
    slow = [await asking(door, {"prompt": "x", "stream": True}) for _ in range(2)]
    await until(lambda: len(script.requests) == len(slow))
    async with httpx2.AsyncClient(base_url=door.url, timeout=HANG_S) as http:
        answers = await asyncio.gather(*(http.post(PATH, json={"prompt": "x", "n": 10}) for _ in range(2)))
    assert {answer.status_code for answer in answers} == {200}, answers[0].text[:500]
    assert {len(answer.json()["data"]) for answer in answers} == {10}
    told = {line.get("request_id") for line in door.lines()}
    assert not told & {request.request_id for request in script.requests[: len(slow)]}, "they were not slow"
    for reader, writer in slow:
        text = bytearray()
        while b'"synerdiff"' not in text[-4096:]:
            text += await asyncio.wait_for(reader.read(1 << 20), HANG_S)
        assert text.count(b"event: image_generation.completed") == 10
        writer.close()


def test_a_scheduler_that_is_away_is_told_of_and_keeps_the_gateway_from_being_ready(tmp_path: Path) -> None:
    with running_gateway("127.0.0.1:1", tmp_path, "--patience-s", "0", ready=False) as door:
        assert door.get("/readyz").status_code == 503
        answer = draw(door)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
        wait_until(lambda: any(line["event"] == "not ready" for line in door.lines()))


async def test_a_stream_without_events_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "QUIET_S", 0.01)

    async def one_late() -> object:
        await asyncio.sleep(0.1)
        yield sse.event("x", {"a": "\u2028"})

    chunks = [chunk async for chunk in sse._never_quiet(one_late())]  # type: ignore[arg-type]
    assert set(chunks[:-1]) == {b": still here\n\n"}
    assert chunks[-1] == b'event: x\ndata: {"a":"\\u2028"}\n\n'
