"""The scenarios. Each leaves the cluster as it found it: schedulers x2, one UNet and one VAE worker."""

import asyncio
import random
import time
from dataclasses import replace

from deploy.rehearsal import answers
from deploy.rehearsal.manifests import Workload
from deploy.rehearsal.pod import Pod
from deploy.rehearsal.stage import REDIS, SCHEDULER, UNET, VAE, WORKERS, Load, Stage
from synerdiff.host import usable_cores

_SIMULATED_CLIENTS, _REAL_CLIENTS = 48, 12
_LEAST_RISE = 2.7


async def first_picture(stage: Stage) -> None:
    """From rendered manifests to a picture, with every kind of worker twice."""
    scenario, began = "first picture", time.monotonic()
    await stage.scaled(2, *WORKERS)
    stage.report.measured(scenario, "every pod ready", f"{time.monotonic() - began:.1f} s")
    answered = await stage.finish(await stage.send(1, "--requests", "1"))
    stage.report.none_of(scenario, "requests failed", answers.errors(answered))
    pictures = [picture.shape for answer in answered for picture in answer.pixels().values()]
    seconds = f"{time.monotonic() - began:.1f} s after the manifests"
    stage.report.check(scenario, "a picture came", bool(pictures), f"{pictures}, {seconds}")
    await stage.scaled(1, *WORKERS)


async def scaling(stage: Stage) -> None:
    """UNet workers 1 -> 3 -> 1 and VAE workers 1 -> 2 -> 1 under load, each by itself."""
    await _scaled_in_turn(stage, "scaling", (UNET, 3), (UNET, 1), (VAE, 2), (VAE, 1))


async def short_scaling(stage: Stage) -> None:
    """UNet workers 1 -> 2 -> 1 under load."""
    await _scaled_in_turn(stage, "short scaling", (UNET, 2), (UNET, 1))


async def _scaled_in_turn(stage: Stage, scenario: str, *turns: tuple[str, int]) -> None:
    async with stage.under_load(scenario):
        for name, replicas in turns:
            await stage.scaled(replicas, name)
            await asyncio.sleep(stage.options.hold_s)


async def rolling_restart(stage: Stage) -> None:
    """Every Deployment restarted under load, one after the other and then all at once; Redis killed."""
    async with stage.under_load("rolling restart"):
        for names in ((SCHEDULER,), (UNET,), (VAE,), (SCHEDULER, UNET, VAE)):
            for name in names:
                stage.cluster.restart(name)
            began = time.monotonic()
            await stage.cluster.settled(*names)
            seconds = f"{time.monotonic() - began:.1f} s"
            stage.report.measured("rolling restart", " + ".join(names), seconds)
            await asyncio.sleep(stage.options.hold_s)
        stage.cluster.pods(REDIS)[0].kill9()
        await asyncio.sleep(1.0)
        await stage.cluster.settled()
        await asyncio.sleep(stage.options.hold_s)


async def lost_leader(stage: Stage) -> None:
    """A UNet worker drains while the leader is killed: the next leader has to let it end its tasks."""
    async with stage.under_load("lost leader"):
        leader, began = await stage.leader(), time.monotonic()
        stage.cluster.stop(stage.cluster.pods(UNET)[0])
        leader.kill9()
        await stage.cluster.settled()
        stage.report.measured("lost leader", "drained and replaced", f"{time.monotonic() - began:.1f} s")


async def chaos(stage: Stage) -> None:
    """Pods killed with SIGKILL, and drained, at random under load, with every kind of worker twice."""
    draw = random.Random(stage.options.seed)
    await stage.scaled(2, *WORKERS)
    done: list[str] = []
    async with stage.under_load("chaos"):
        until = time.monotonic() + stage.options.chaos_s
        while time.monotonic() < until:
            await asyncio.sleep(draw.uniform(0.5, 1.5) * stage.options.kill_every_s)
            done.append(_disturb(stage, draw))
        await stage.cluster.settled()
    stage.report.measured("chaos", "disturbances", ", ".join(sorted(f"{done.count(d)} x {d}" for d in set(done))))
    await stage.scaled(1, *WORKERS)


def _disturb(stage: Stage, draw: random.Random) -> str:
    """Kill or drain one pod that is ready. Redis is killed only: one pod cannot be replaced while it serves."""
    kind = draw.choice((SCHEDULER, UNET, UNET, VAE, VAE, REDIS))
    ready = [pod for pod in stage.cluster.pods(kind) if pod.ready]
    if not ready:
        return "nothing ready to disturb"
    pod: Pod = draw.choice(ready)
    if kind == REDIS or draw.random() < 0.5:
        pod.kill9()
        return f"kill -9 {kind}"
    stage.cluster.stop(pod)
    return f"drain {kind}"


async def simulated_throughput(stage: Stage) -> None:
    """Simulated workers, 20 ms a tick, in place of the real ones: the gain of three UNet workers over one."""
    real = {name: stage.cluster.workload(name) for name in WORKERS}
    for name, kind in ((UNET, "unet"), (VAE, "vae")):
        stage.cluster.put(_simulated(real[name], kind))
    await stage.cluster.settled()
    pictures = ("--simulated", "--requests", "40", "--least-steps", "30", "--most-steps", "60")
    load = await stage.send(_SIMULATED_CLIENTS, *pictures, endless=True)
    rates = await _rates(stage, load, "simulated workers")
    found = await stage.finish(load)
    stage.report.none_of("simulated workers", "requests failed", answers.errors(found))
    rise = rates[3] / rates[1]
    stage.report.check("simulated workers", f"rise of at least {_LEAST_RISE}", rise >= _LEAST_RISE, f"{rise:.2f}")
    for workload in real.values():
        stage.cluster.put(workload)
    await stage.cluster.settled()


async def real_throughput(stage: Stage) -> None:
    """The gain of several real UNet workers over one, as far as this machine's cores allow."""
    load = await stage.send(_REAL_CLIENTS, endless=True)
    rates = await _rates(stage, load, "real workers")
    stage.report.none_of("real workers", "requests failed", answers.errors(await stage.finish(load)))
    rise = f"{rates[3] / rates[1]:.2f} on {usable_cores()} cores"
    stage.report.measured("real workers", "rise", rise)
    await stage.scaled(1, UNET)


async def _rates(stage: Stage, load: Load, scenario: str) -> dict[int, float]:
    """Steps a second in the clients' progress events, with one UNet worker and with three, under the full load."""
    await stage.cluster.until(lambda: load.answered() > 0, "a first answer")
    rates = {}
    for replicas in (1, 3):
        await stage.scaled(replicas, UNET)
        await asyncio.sleep(stage.options.hold_s)  # until each has taken its share
        steps, began = load.steps(), time.monotonic()
        await asyncio.sleep(stage.options.measure_s)
        rates[replicas] = (load.steps() - steps) / (time.monotonic() - began)
        stage.report.measured(scenario, f"UNet workers: {replicas}", f"{rates[replicas]:.1f} steps/s")
    return rates


def _simulated(workload: Workload, kind: str) -> Workload:
    """The workload with a simulated worker in the place of its own; all else of its pods stays."""
    template = workload.template
    container = replace(template.containers[0], command=("python", "-m", "deploy.rehearsal.simulated", kind), args=())
    template = replace(template, containers=(container, *template.containers[1:]), revision=f"simulated-{kind}")
    return replace(workload, template=template)


SCENARIOS = {
    scenario.__name__.replace("_", "-"): scenario
    for scenario in (
        first_picture,
        scaling,
        rolling_restart,
        lost_leader,
        chaos,
        simulated_throughput,
        real_throughput,
        short_scaling,
    )
}
