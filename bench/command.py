"""A measurement as a command: its parameters are the options, its result is printed, errors in that set the status.

Settings are given by `--set NAME=VALUE`, any number; a choice of names by comma.
"""

import asyncio
import functools
import inspect
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from pydantic import TypeAdapter

C = TypeVar("C")
T = TypeVar("T")

CORES = os.cpu_count() or 1

ProfileFile = Annotated[Path | None, typer.Option(help="A profile file to plan by.", resolve_path=True)]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting; any number.")]
Only = Annotated[str, typer.Option(help="Configurations by comma. Default: all.")]
ModelDirectory = Annotated[Path, typer.Option(help="A model directory in diffusers layout.")]
Processes = Annotated[int, typer.Option(help="Simulations at once.")]


def run(
    measure: Callable[..., Any],
    *,
    show: Callable[[Any], str] = lambda result: as_json(result),
    well: Callable[[Any], bool] = lambda result: not has_errors(result),
) -> None:
    """Run a measurement, a coroutine too, with the options of the command line; status 1 where not `well`."""

    @functools.wraps(measure)
    def command(**options: Any) -> None:
        result = measure(**options)
        if inspect.iscoroutine(result):
            result = uvloop.run(result)
        if result is not None:
            print(show(result))
        raise typer.Exit(0 if well(result) else 1)

    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(help=help_of(sys.modules["__main__"].__doc__))(command)
    app()


def help_of(doc: str | None) -> str:
    """A module's docstring with its lines as they are."""
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in (doc or "").split("\n\n"))


def as_json(result: Any) -> str:
    return json.dumps(result, indent=1, default=str)


def has_errors(result: Any) -> bool:
    """Whether anything under the name `errors` is in a result, however deep."""
    if isinstance(result, Mapping):
        return any(bool(value) if name == "errors" else has_errors(value) for name, value in result.items())
    return isinstance(result, list | tuple) and any(map(has_errors, result))


def some_of(text: str, known: Collection[str], option: str) -> list[str]:
    """Names by comma; all that are known where the text is empty. Raises typer.BadParameter for any other."""
    names = [name.strip() for name in text.split(",")] if text else list(known)
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of: {', '.join(known)}", param_hint=option)
    return names


def settings_of(pairs: Iterable[str] | None, known: Collection[str] = ()) -> dict[str, str]:
    """NAME=VALUE pairs. Raises typer.BadParameter for a text that is none, or an unknown name."""
    found = {}
    for pair in pairs or ():
        name, separator, value = pair.partition("=")
        if not separator or (known and name not in known):
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE of a setting", param_hint="--set")
        found[name] = value
    return found


def typed(kind: type[T], pairs: Iterable[str] | None) -> T:
    """A dataclass of settings with those of the NAME=VALUE pairs."""
    return TypeAdapter(kind).validate_python(settings_of(pairs))


def flags(options: Mapping[str, object]) -> list[str]:
    """A command line's words for options by their parameters' names; those that are False or None are left out."""
    named = {
        f"--{name.replace('_', '-')}": value
        for name, value in options.items()
        if value is not None and value is not False
    }
    return [name if value is True else f"{name}={value}" for name, value in named.items()]


def spread(work: Callable[[C], T], cases: Sequence[C], processes: int) -> list[T]:
    """The work of every case, over so many processes (1: here), in order."""
    if processes == 1:
        return list(map(work, cases))
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(work, cases, chunksize=4))


async def lines_of_stdin() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


RESULTS = Path(__file__).parent / "results"
# The features of a CPU that decide torch's speed on it.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def machine() -> dict[str, object]:
    import torch  # tables are made without it

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return {
        "cpu": model,
        "cores": cores,
        "flags": [flag for flag in flags if flag in FLAGS],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
    }


def save(name: str, result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write a result with the command, machine and date to NAME.json; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    module = getattr(sys.modules["__main__"].__spec__, "name", sys.argv[0]).removesuffix(".__main__")
    about = {"date": datetime.now(UTC).date().isoformat(), "machine": machine()}
    whole = {**about, "command": shlex.join(["python", "-m", module, *sys.argv[1:]]), **result}
    path.write_text(json.dumps(whole, indent=1) + "\n")
    return path


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def number(value: float | None, digits: int, unit: str = "") -> str:
    """A number as tables show it; a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}{unit}"
