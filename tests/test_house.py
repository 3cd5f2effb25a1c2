"""Rules of the house that no single module could keep: stubs, imports, and what the product never does."""

import ast
import json
import subprocess
import sys
from pathlib import Path

from tests.waiting import HANG_S

ROOT = Path(__file__).parents[1]
PACKAGES = ("synerdiff", "services", "synerdiff_cli")
HEAVY = {"torch", "diffusers", "transformers", "safetensors", "accelerate"}
# Where torch may be; everything else runs on a machine that never installed it.
MODEL_CODE = ("synerdiff.models", "synerdiff.worker", "services.unet_worker", "services.vae_worker")

MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 350, 70


def modules() -> dict[str, Path]:
    """Every module of the product that a person wrote, by its name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "v1" not in path.parts:
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found[name.removesuffix(".__init__")] = path
    return found


def test_the_generated_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    protos = sorted(str(path) for path in (ROOT / "protos/synerdiff/v1").glob("*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    plugins = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", *outputs, *protos]
    subprocess.run(command, check=True, env=plugins, timeout=HANG_S)
    generated = {path.name: path.read_text() for path in (tmp_path / "synerdiff/v1").iterdir()}
    checked_in = {path.name: path.read_text() for path in (ROOT / "synerdiff/v1").glob("*_pb2*")}
    stale = sorted(name for name in generated | checked_in if generated.get(name) != checked_in.get(name))
    assert not stale, f"run `make protos`: {stale}"


def test_the_configuration_reference_is_that_of_the_settings() -> None:
    command = [sys.executable, str(ROOT / "docs/settings_reference.py")]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=HANG_S)
    assert done.stdout == (ROOT / "docs/configuration.md").read_text(), "run `make docs`"


def test_all_but_model_code_runs_without_torch() -> None:
    light = [name for name in modules() if not name.startswith(MODEL_CODE) and not name.endswith("__main__")]
    assert {"services.scheduler", "synerdiff_cli.supervisor", "synerdiff.settings"} <= set(light)
    code = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        f"print(json.dumps(sorted({HEAVY!r} & set(sys.modules))))"
    )
    command = [sys.executable, "-c", code, json.dumps(light)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == []


def test_nothing_is_pickled() -> None:
    offenders = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported.append(node.module or "")
            unpickles = isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save")
            if unpickles or {"pickle", "cloudpickle", "dill", "shelve", "marshal"} & set(imported):
                offenders.append(f"{name}: {ast.unparse(node)}")
    assert offenders == []


def test_files_and_functions_fit_the_eye() -> None:
    """A file is one role, a function a screen."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    too_long = []
    for name in listed.split():
        if "/v1/" in name or not (ROOT / name).exists():
            continue
        text = (ROOT / name).read_text()
        lengths = {name: text.count("\n") - MOST_LINES_OF_A_FILE}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                lengths[f"{name}: {node.name}"] = length - MOST_LINES_OF_A_FUNCTION
        too_long += [f"{where}: {over} lines too many" for where, over in lengths.items() if over > 0]
    assert not too_long
