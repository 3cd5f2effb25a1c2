"""README.md as a stranger follows it: every command in it is run here, and does what the page says."""

import base64
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.end_to_end.command import SYNERDIFF, Up, environment, running_up
from tests.markdown import ROOT, blocks
from tests.tiny_models import tiny_model
from tests.waiting import HANG_S

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in blocks(README, "sh") for line in block.splitlines() if line]
MAKE = [line for line in COMMANDS if line.startswith("make ")]
UP = [line for line in COMMANDS if line.startswith(".venv/bin/synerdiff up")]
OF_OWN_MODEL = [line for line in COMMANDS if line not in UP and "--model" in line]
CURL = [line for line in COMMANDS if line.startswith("curl ")]
OTHERS = [line for line in COMMANDS if line not in (*MAKE, *UP, *OF_OWN_MODEL, *CURL)]


def run(line: str, folder: Path, address: str) -> str:
    """Run a command of the page in `folder`, against the schedulers of a test. Returns its stdout."""
    program, *arguments = shlex.split(line)
    assert program == ".venv/bin/synerdiff", f"nothing here runs {program}"
    return called([SYNERDIFF, *arguments], folder, address)


def called(command: list[str], folder: Path, address: str) -> str:
    variables = environment(folder) | {"SYNERDIFF_ADDRESS": address}
    done = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def leader(up: Up, folder: Path) -> str:
    """The address of the scheduler that leads: the page's own deployment has one alone."""
    asked = {address: called([SYNERDIFF, "status", "--json"], folder, address) for address in up.addresses}
    return next(address for address, answer in asked.items() if json.loads(answer).get("leader"))


def test_make_runs_the_demo_that_is_tested_and_all_tests() -> None:
    """tests/end_to_end/test_demo.py runs the command that `make demo` ends with; this test is part of `make test`."""
    assert MAKE == ["make demo", "make test"]
    recipes = [
        subprocess.run(
            ["make", "--dry-run", *line.split()[1:]],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=True,
        ).stdout.splitlines()
        for line in MAKE
    ]
    assert recipes[0][-1] == '.venv/bin/synerdiff demo "a slice of pizza"'
    tests = "\n".join(recipes[1])
    assert [tool for tool in ("ruff check", "lint-imports", "mypy", "pytest") if tool not in tests] == []


def test_what_is_asked_of_up_is_answered(up: Up, tmp_path: Path) -> None:
    assert UP[0] == ".venv/bin/synerdiff up"
    assert OTHERS
    address = leader(up, tmp_path)
    for line in OTHERS:
        run(line, tmp_path, address)
        for name in re.findall(r"\w+\.png", line):
            with Image.open(tmp_path / name) as picture:
                picture.load()


def test_curl_gets_a_picture(up: Up, tmp_path: Path) -> None:
    (line,) = CURL
    command = shlex.split(line.replace("http://127.0.0.1:8000", up.gateway_url()).replace("curl -s", "curl -fsS"))
    done = subprocess.run(command, capture_output=True, timeout=HANG_S, check=True)
    (picture,) = json.loads(done.stdout)["data"]
    with Image.open(io.BytesIO(base64.b64decode(picture["b64_json"]))) as image:
        image.load()


def test_the_python_of_the_page_draws_its_pictures(up: Up, tmp_path: Path) -> None:
    (code,) = blocks(README, "python")
    assert "127.0.0.1:50051" in code
    called([sys.executable, "-c", code.replace("127.0.0.1:50051", up.addresses[0])], tmp_path, up.addresses[0])
    names = {"coffee.png", "dog-0.png", "dog-1.png", "dog-2.png", "dog-3.png"}
    assert names <= {path.name for path in tmp_path.iterdir()}


def test_a_model_of_ones_own_is_served(tmp_path: Path) -> None:
    """The directory of the page is no one's; a tiny model of random weights, as diffusers saves one, stands there."""
    (served,) = UP[1:]
    name, _, directory = served.rpartition(" ")[2].partition("=")
    assert served == f".venv/bin/synerdiff up --model {name}={directory}"
    assert OF_OWN_MODEL
    own = tiny_model("sd1", tmp_path / "own")
    with running_up(tmp_path, schedulers=1, model=f"{name}={own}") as up:
        for line in OF_OWN_MODEL:
            assert f"--model {name}" in line
            with Image.open(tmp_path / run(line, tmp_path, up.addresses[0]).strip()) as picture:
                picture.load()
