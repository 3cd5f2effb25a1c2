"""A pod's life with real processes and a real health service; probes a hundred times as fast as Kubernetes' own."""

import asyncio
import signal as signals
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from deploy.rehearsal import pod as pod_module
from deploy.rehearsal.manifests import Container, PodTemplate, Probe
from deploy.rehearsal.node import Identity
from deploy.rehearsal.pod import Pod, Tally, Verdict
from synerdiff.rpc import ServiceHost
from tests.waiting import HANG_S, until

QUICK = Probe("grpc", service="readiness", period_s=0.02, failure_threshold=2)
OBEYS = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.01; done")
REFUSES = "trap '' TERM; echo > {deaf}; while :; do sleep 0.01; done"


async def start_bare(pod: Identity, spec: Container, log: Path, command: Sequence[str]) -> asyncio.subprocess.Process:
    """Runs commands as they are."""
    return await asyncio.create_subprocess_exec(*(command or spec.command))


@pytest.fixture
async def host() -> AsyncIterator[ServiceHost]:
    host = ServiceHost()
    await host.start("127.0.0.1:0")
    yield host
    await host.drain(0.0)


def make_pod(tmp_path: Path, container: Container, grace_s: float = HANG_S) -> Pod:
    identity = Identity("pod", "here", "127.0.0.1", "127.0.0.1", tmp_path)
    template = PodTemplate({}, (container,), (), grace_s, "a")
    return Pod(identity, "worker", template, start_bare, tmp_path, on_change=lambda: None, on_event=lambda what: None)


def restarted(pod: Pod, times: int) -> bool:
    return pod.containers[0].restarts == times and pod.containers[0].alive


def port_of(host: ServiceHost) -> int:
    return int(host.address.rpartition(":")[2])


async def test_readiness_follows_the_probe_by_its_threshold(
    tmp_path: Path, host: ServiceHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_module, "ENDPOINT_DELAY_S", HANG_S)
    probe = replace(QUICK, port=port_of(host))
    pod = make_pod(tmp_path, Container("c", "image", OBEYS, readiness=probe))
    pod.start()
    await asyncio.sleep(0.1)
    assert not pod.ready
    await host.set_ready(True)
    await until(lambda: pod.ready)
    await host.set_ready(False)
    await until(lambda: not pod.ready)
    assert pod.in_service, "its Services hear of it a little later"
    await pod.stop()
    assert pod.containers[0].restarts == 0


async def test_without_a_startup_probe_that_passes_nothing_is_asked(tmp_path: Path, host: ServiceHost) -> None:
    await host.set_ready(True)
    absent = Probe("exec", command=("false",), period_s=0.02, failure_threshold=10_000)
    ready = replace(QUICK, port=port_of(host))
    pod = make_pod(tmp_path, Container("c", "image", OBEYS, startup=absent, readiness=ready))
    pod.start()
    await asyncio.sleep(0.2)
    assert not pod.ready
    await pod.kill()


async def test_a_container_that_fails_its_liveness_is_started_again(tmp_path: Path) -> None:
    failing = Probe("exec", command=("false",), period_s=0.02, failure_threshold=2)
    pod = make_pod(tmp_path, Container("c", "image", OBEYS, liveness=failing))
    pod.start()
    await until(lambda: pod.containers[0].restarts >= 1)
    assert pod.unfit >= 1
    await pod.kill()


async def test_a_container_that_ends_is_started_again_at_once_then_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_module, "_FIRST_DELAY_S", 0.3)
    pod = make_pod(tmp_path, Container("c", "image", OBEYS))
    pod.start()
    for _ in range(2):
        await until(lambda: pod.containers[0].alive and pod.ready)
        began, restarts = time.monotonic(), pod.containers[0].restarts
        pod.kill9()
        await until(partial(restarted, pod, restarts + 1))
    assert time.monotonic() - began >= 0.3
    await pod.kill()


async def test_stopping_sleeps_first_and_takes_the_pod_out_of_service_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = make_pod(tmp_path, Container("c", "image", OBEYS, pre_stop_s=0.3))
    pod.start()
    await until(lambda: pod.ready)
    signalled_after_s = []
    signal = pod.containers[0].signal

    def watched_signal(number: signals.Signals) -> None:
        assert not pod.ready
        assert pod.containers[0].alive
        signalled_after_s.append(time.monotonic() - began)
        signal(number)

    monkeypatch.setattr(pod.containers[0], "signal", watched_signal)
    began = time.monotonic()
    await pod.stop()
    (slept_s,) = signalled_after_s
    assert slept_s >= 0.3
    assert pod.killed_after_grace == 0


async def test_what_does_not_end_within_its_grace_is_killed_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_module, "_LEAST_GRACE_S", 0.1)
    deaf = tmp_path / "deaf"
    pod = make_pod(tmp_path, Container("c", "image", ("sh", "-c", REFUSES.format(deaf=deaf))), grace_s=0.3)
    pod.start()
    await until(lambda: pod.ready and deaf.exists())
    await pod.stop()
    assert pod.killed_after_grace == 1
    assert not pod.containers[0].alive


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        ([True], Verdict.PASSED),
        ([False, False], Verdict.UNKNOWN),
        ([False, False, True, False], Verdict.UNKNOWN),
        ([False, False, False], Verdict.FAILED),
    ],
)
def test_thresholds_count_answers_in_a_row(answers: list[bool], verdict: Verdict) -> None:
    tally = Tally(Probe("grpc", failure_threshold=3))
    for answer in answers:
        last = tally.count(answer)
    assert last is verdict
