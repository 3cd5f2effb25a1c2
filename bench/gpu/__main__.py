"""Tests, measures and compares on an NVIDIA GPU, in minutes and without a network; tables come out.

    python -m bench.gpu --out DIR [--deadline-s 480] [--sections machine,gpu-tests,...]
    python -m bench.gpu --out DIR --device cpu            # tiny models: shows that the kit itself runs
    python -m bench.gpu report DIR/results.jsonl          # the tables again

Every section is a process of its own with a limit of its own, and writes each figure to DIR/results.jsonl as soon as
it is known; one that fails says so, and the next runs. They come in order of their value: when time is short, the last
ones are left out. Models are of full size with random weights, on which speed does not depend. No setting of the card
is changed. DIR gets results.jsonl, summary.md, pytest.txt, workers.log, pictures.png and the measured profiles.
"""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from bench.command import help_of, say, some_of
from bench.gpu.kit import RESULTS, SUMMARY, scratch
from bench.gpu.report import render
from bench.gpu.runner import BY_NAME, SECTIONS, Wanted, run_sections

NAMES = [section.name for section in SECTIONS]
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True, help=help_of(__doc__))
def kit(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    deadline_s: Annotated[float, typer.Option(help="All is over after so many seconds.")] = 480.0,
    sections: Annotated[str, typer.Option(help=f"By comma, of {', '.join(NAMES)}.")] = "",
    # Sections that fail at once, for the test that the others still run.
    plant_failure: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Run the sections. The exit status is 1 where one failed."""
    if context.invoked_subcommand:
        return
    began = time.monotonic()
    if out is None:
        raise typer.BadParameter("a folder for the results", param_hint="--out")
    out.mkdir(parents=True, exist_ok=True)
    if (out / RESULTS).exists():
        raise typer.BadParameter(f"{out} has the results of another run", param_hint="--out")
    names = some_of(sections, NAMES, "--sections")
    planted = some_of(plant_failure, BY_NAME, "--plant-failure") if plant_failure else []
    os.environ |= {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with scratch("synerdiff-gpu-") as work:
        ended = run_sections(Wanted(out.resolve(), work, device, began + deadline_s, names, planted), say)
    (out / SUMMARY).write_text(render(out / RESULTS))
    print(render(out / RESULTS, brief=True))
    raise typer.Exit(int(any(status in ("failed", "out of time") for status in ended.values())))


@app.command()
def report(results: list[Path]) -> None:
    """Render the tables of each results.jsonl."""
    print("\n".join(map(render, results)))


if __name__ == "__main__":
    app()
