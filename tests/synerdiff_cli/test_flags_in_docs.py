"""Every flag that a page of the docs names is one that some command or service takes."""

import ast
import re
from pathlib import Path

import pytest
from typer.main import get_command

from services.gateway.settings import GatewaySettings
from services.scheduler.settings import SchedulerSettings
from services.unet_worker.settings import UnetWorkerSettings
from services.vae_worker.settings import VaeWorkerSettings
from synerdiff_cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Commands of others that the pages show.
OTHERS = re.compile(
    r"^\s*(--set-file|kubectl|helm|docker|curl|grpcurl|pip|redis-cli|nvidia-\S+|git|perf|numactl|openssl|sh)\b"
)


def _of_services() -> dict[str, bool]:
    """Every flag of a service, and whether it takes a value."""
    found = {"--config": True, "--help": False}
    for settings in (SchedulerSettings, GatewaySettings, UnetWorkerSettings, VaeWorkerSettings):
        for name, field in settings.model_fields.items():
            flag = f"--{name.replace('_', '-')}"
            found[flag] = field.annotation is not bool
            if field.annotation is bool:
                found[f"--no-{flag.removeprefix('--')}"] = False
    return found


def _of_the_command_line() -> set[str]:
    found: set[str] = set()
    commands = [get_command(app)]
    while commands:
        command = commands.pop()
        commands += list(getattr(command, "commands", {}).values())
        for parameter in command.params:
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


def _of_scripts() -> set[str]:
    """Flags of the modules that are run with `python -m`."""
    sources = [
        path for folder in ("bench", "deploy", "docs", "models", "services") for path in (ROOT / folder).rglob("*.py")
    ]
    written = {flag for path in sources for flag in re.findall(r"[\"'](--[a-z][a-z0-9-]*)[\"']", path.read_text())}
    return written | {flag for path in sources for flag in _of_measurement(path)}


def _of_measurement(path: Path) -> set[str]:
    """Flags of a module that ends with `run(FUNCTION)` of bench.command, or is a command of typer: its parameters."""
    tree = ast.parse(path.read_text())
    called = [node.args[0] for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    run = {argument.id for argument in called if isinstance(argument, ast.Name)}
    measured = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.name in run or node.decorator_list)
    ]
    names = {argument.arg.replace("_", "-") for node in measured for argument in node.args.args}
    return {f"--{no}{name}" for name in names for no in ("", "no-")}


@pytest.fixture(scope="module")
def known() -> set[str]:
    return set(_of_services()) | _of_the_command_line() | _of_scripts()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_flags_of_a_page_exist(page: Path, known: set[str]) -> None:
    unknown = {
        flag
        for line in page.read_text(encoding="utf-8").splitlines()
        if not OTHERS.match(line)
        for code in re.findall(r"`([^`]+)`", line) + ([line] if line.startswith("    ") else [])
        if not OTHERS.match(code)
        for flag in FLAG.findall(code)
        if flag not in known
    }
    assert not unknown


def test_the_page_on_models_gives_values_only_to_flags_that_take_one() -> None:
    flags = _of_services()
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for flag, value in re.findall(r"`(--[a-z-]+)(?: ([^`]+))?`", page):
        assert flag in flags, flag
        assert bool(value) <= flags[flag], f"{flag} takes no value: {value}"
