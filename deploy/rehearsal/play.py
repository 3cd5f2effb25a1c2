"""A rehearsal from its manifests to its table."""

import argparse
import asyncio
import dataclasses
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from deploy.kustomize import CannotRender, render
from deploy.rehearsal import manifests
from deploy.rehearsal.cluster import Cluster, Event, NotInTime
from deploy.rehearsal.manifests import Manifests, NotRehearsed
from deploy.rehearsal.report import Report
from deploy.rehearsal.sandbox import Sandbox, keep_log_folder
from deploy.rehearsal.scenarios import FULL, SCENARIOS, SHORT
from deploy.rehearsal.stage import GATEWAY, SCHEDULER, UNET, VAE, Options, Stage
from synerdiff.redis_process import find_redis_server


def play(given: argparse.Namespace, sandbox: Sandbox, folder: Path) -> int:
    """Run the chosen scenarios. Returns the exit status."""
    names = [name for name in given.only.split(",") if name] or list(SHORT if given.short else FULL)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        print(f"--only: {unknown[0]!r} is none of: {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    try:
        rendered = manifests.parse(render(given.overlay))
    except (CannotRender, NotRehearsed) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"pods:          {sandbox.description}")
    print(f"images:        this working tree with {sys.executable}; Redis by {find_redis_server()}")
    print(f"not rehearsed: {', '.join(rendered.not_rehearsed)}", flush=True)
    report = Report()
    logs = given.logs or folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    asyncio.run(_rehearse(_one_of_each(rendered, given.short), sandbox, logs, names, _options(given), report, given))
    print(f"\n{report.table()}\n\n{time.monotonic() - began:.0f} s; {'passed' if report.passed else 'FAILED'}")
    if report.passed:
        shutil.rmtree(folder)
    else:
        print(f"logs: {given.logs or keep_log_folder(folder) / 'logs'}")
    return 0 if report.passed else 1


async def _rehearse(
    rendered: Manifests,
    sandbox: Sandbox,
    logs: Path,
    names: list[str],
    options: Options,
    report: Report,
    given: argparse.Namespace,
) -> None:
    def tell(event: Event) -> None:
        if not given.quiet:
            print(f"{event.at_s:8.2f}  {event.what}", flush=True)

    async with Cluster(rendered, sandbox.network, sandbox.runtime, sandbox.state, logs, tell) as cluster:
        stage = Stage(cluster, report, options)
        for name in names:
            began = time.monotonic()
            try:
                await cluster.settled(within_s=options.patience_s) if name != "first-picture" else None
                await SCENARIOS[name](stage)
            except NotInTime as error:
                report.check(name, "came about", False, str(error))
            report.measured(name, "took", f"{time.monotonic() - began:.0f} s")
        report.check("all", "containers that failed a probe", cluster.unfit == 0, str(cluster.unfit))


def _one_of_each(rendered: Manifests, short: bool) -> Manifests:
    """Scenarios begin with one worker of each kind and one gateway; the short form with one scheduler, too."""
    replicas = {UNET: 1, VAE: 1, GATEWAY: 1} | ({SCHEDULER: 1} if short else {})
    workloads = {
        name: replace(workload, replicas=replicas.get(name, workload.replicas))
        for name, workload in rendered.workloads.items()
    }
    return replace(rendered, workloads=workloads)


def _options(given: argparse.Namespace) -> Options:
    defaults = Options()
    named = {field.name for field in dataclasses.fields(Options)} - {"steps"}
    changes = {name: value for name in named if (value := getattr(given, name, None)) is not None}
    steps = (given.least_steps or defaults.steps[0], given.most_steps or defaults.steps[1])
    return replace(defaults, steps=steps, **changes)
