"""A measurement as a command: its parameters are the options, what it returns is printed, errors in it are the status.

Settings are told by `--set NAME=VALUE`, any number; names out of a few by comma.
"""

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from pydantic import TypeAdapter

C = TypeVar("C")
T = TypeVar("T")

CORES = os.cpu_count() or 1

ProfileFile = Annotated[Path | None, typer.Option(help="A profile file to plan by.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting; any number.")]
Only = Annotated[str, typer.Option(help="Configurations by comma. Default: all.")]
ModelDirectory = Annotated[Path, typer.Option(help="A model directory in diffusers layout.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the rows there.")]
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
    """NAME=VALUE pairs. Raises typer.BadParameter for what is none, or has a name that is not known."""
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


def spread(work: Callable[[C], T], cases: Sequence[C], processes: int) -> list[T]:
    """The work of every case, over so many processes (1: here), in order."""
    if processes == 1:
        return list(map(work, cases))
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(work, cases, chunksize=4))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
