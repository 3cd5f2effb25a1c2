"""`python -m deploy.rehearsal`: an overlay's manifests, run as processes of this machine, scaled, killed, restarted.

See README.md. Exit status 0 when every check has held.
"""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

from deploy.kustomize import CannotRender, render
from deploy.rehearsal.manifests import Manifests, NotRehearsed, parse
from deploy.rehearsal.node import IsolatedNode, LoopbackNode, Node, why_not_isolated
from deploy.rehearsal.report import Options, Report
from synerdiff.redis_process import find_redis_server

_PREFIX = "synerdiff-rehearsal-"


def main() -> int:
    """Parse the command line and rehearse. Returns the exit status."""
    options = _options()
    try:
        manifests = parse(render(options.overlay))
    except (CannotRender, NotRehearsed) as error:
        print(error, file=sys.stderr)
        return 2
    folder = _log_folder()
    reason = "asked for" if options.loopback else why_not_isolated()
    node = LoopbackNode(folder / "state", reason) if reason else IsolatedNode()
    # This starts threads, which the node's namespaces have to come before.
    from deploy.rehearsal.scenarios import SCENARIOS

    default = [name for name in SCENARIOS if (name == "short-scaling") == options.short]
    names = [name for name in options.only.split(",") if name] or default
    if unknown := [name for name in names if name not in SCENARIOS]:
        print(f"--only: {unknown[0]!r} is none of: {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    print(f"pods:          {node.description}")
    print(f"images:        this working tree with {sys.executable}; Redis by {find_redis_server()}")
    print(f"not rehearsed: {', '.join(manifests.not_rehearsed)}", flush=True)
    report, began = Report(), time.monotonic()
    logs = options.logs or folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    asyncio.run(_rehearse(manifests, names, node, logs, options, report))
    print(f"\n{report.table()}\n\n{time.monotonic() - began:.0f} s; {'passed' if report.passed else 'FAILED'}")
    if report.passed:
        shutil.rmtree(folder)
    else:  # the logs stay for the user to find the cause
        kept = options.logs or folder.rename(Path(tempfile.mkdtemp(prefix=f"{_PREFIX}failed-"), "logs")) / "logs"
        print(f"logs: {kept}")
    return 0 if report.passed else 1


def _options() -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.rehearsal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option in fields(Options):
        annotated, meaning = get_args(option.type)
        kind = next(iter(get_args(annotated)), annotated)  # of an optional one, too
        how = {"action": "store_true"} if kind is bool else {"type": kind, "default": option.default}
        parser.add_argument(f"--{option.name.replace('_', '-')}", help=meaning, **how)
    return Options(**vars(parser.parse_args()))


def _log_folder() -> Path:
    """A folder for logs, which is removed by the next rehearsal if this one is killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}[0-9]*"):
        if not Path(f"/proc/{left.name.removeprefix(_PREFIX)}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.gettempdir(), f"{_PREFIX}{os.getpid()}")
    folder.mkdir()
    return folder


async def _rehearse(
    manifests: Manifests, names: list[str], node: Node, logs: Path, options: Options, report: Report
) -> None:
    from deploy.rehearsal.cluster import Cluster, NotInTime
    from deploy.rehearsal.scenarios import SCENARIOS
    from deploy.rehearsal.stage import GATEWAY, SCHEDULER, UNET, VAE, Stage

    def tell(at_s: float, what: str) -> None:
        if not options.quiet:
            print(f"{at_s:8.2f}  {what}", flush=True)

    # Scenarios begin with one worker of each kind and one gateway; the short form with one scheduler, too.
    ones = {UNET, VAE, GATEWAY} | ({SCHEDULER} if options.short else set())
    workloads = {n: replace(each, replicas=1) if n in ones else each for n, each in manifests.workloads.items()}
    manifests = replace(manifests, workloads=workloads)
    async with Cluster(manifests, node, logs, options.patience_s, tell) as cluster:
        stage = Stage(cluster, report, options)
        for name in names:
            began = time.monotonic()
            try:
                if name != "first-picture":
                    await cluster.settled()
                await SCENARIOS[name](stage)
            except NotInTime as error:
                report.check(name, "came about", False, str(error))
            report.measured(name, "took", f"{time.monotonic() - began:.0f} s")
        report.check("all", "containers that failed a probe", cluster.unfit == 0, str(cluster.unfit))


if __name__ == "__main__":
    sys.exit(main())
