"""Tests, measures and compares on an NVIDIA GPU, in minutes and without a network; tables come out.

    python -m bench.gpu --out DIR [--deadline-s 480] [--sections machine,gpu-tests,...]
    python -m bench.gpu --out DIR --device cpu            # tiny models: shows that the kit itself runs
    python -m bench.gpu report DIR/results.jsonl          # the tables again

Every section is a process of its own with a limit of its own, and writes each figure to DIR/results.jsonl as soon as
it is known; one that fails says so, and the next runs. They come in order of their value: when time is short, the last
ones are left out. Models are of full size with random weights, on which speed does not depend. No setting of the card
is changed. DIR gets results.jsonl, summary.md, pytest.txt, workers.log, pictures.png and the measured profiles.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from bench.arguments import some_of
from bench.gpu.kit import RESULTS, SUMMARY, Kit, scratch
from bench.gpu.report import render
from bench.gpu.runner import Wanted, run_sections
from bench.gpu.sections import BY_NAME, SECTIONS

DEADLINE_S = 480.0


def main(arguments: list[str] | None = None) -> int:
    """The command line. The exit status is 1 where a section failed."""
    options = _command_line().parse_args(arguments)
    chosen: int = options.run(options)
    return chosen


def _command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=_run)
    _add_run_options(parser)
    commands = parser.add_subparsers(metavar="COMMAND")
    report = commands.add_parser("report", help="render the tables of each results.jsonl")
    report.add_argument("results", type=Path, nargs="+")
    report.set_defaults(run=_report)
    section = commands.add_parser("section")  # one section's own process
    section.add_argument("name", choices=sorted(BY_NAME))
    section.add_argument("--out", type=Path, required=True)
    section.add_argument("--work", type=Path, required=True)
    section.add_argument("--device", default="cuda")
    section.add_argument("--limit-s", type=float, required=True)
    section.add_argument("--planted", action="store_true")
    section.set_defaults(run=_section)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    names = [section.name for section in SECTIONS]
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--deadline-s", type=float, default=DEADLINE_S, help="all is over after so many seconds")
    parser.add_argument("--sections", type=some_of(*names), default=names, help=f"by comma, of {', '.join(names)}")
    # A section that fails at once, for the test that the others do not mind.
    parser.add_argument("--plant-failure", type=some_of(*BY_NAME), default=[], help=argparse.SUPPRESS)


def _run(options: argparse.Namespace) -> int:
    began = time.monotonic()
    if options.out is None:
        _command_line().error("--out: a folder for the results")
    options.out.mkdir(parents=True, exist_ok=True)
    if (options.out / RESULTS).exists():
        _command_line().error(f"--out: {options.out} has the results of another run")
    with scratch("synerdiff-gpu-") as work:
        wanted = Wanted(
            out=options.out.resolve(),
            work=work,
            device=options.device,
            give_up_at=began + options.deadline_s,
            names=options.sections,
            planted=options.plant_failure,
        )
        ended = run_sections(wanted, lambda line: print(line, file=sys.stderr, flush=True))
    (options.out / SUMMARY).write_text(render(options.out / RESULTS))
    print(render(options.out / RESULTS, brief=True))
    return int(any(status in ("failed", "out of time") for status in ended.values()))


def _report(options: argparse.Namespace) -> int:
    print("\n".join(map(render, options.results)))
    return 0


def _section(options: argparse.Namespace) -> int:
    if options.planted:
        raise RuntimeError("planted")
    # So that what a section holds, as a daemon of CUDA MPS, is given back when its time is over.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    give_up_at = time.monotonic() + options.limit_s
    BY_NAME[options.name].run(Kit(options.name, options.out, options.work, options.device, give_up_at))
    return 0


if __name__ == "__main__":
    sys.exit(main())
