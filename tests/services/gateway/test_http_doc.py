"""docs/http.md and the OpenAPI document against a gateway: both say what there is, and schemathesis finds no more."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from services.gateway import errors
from services.gateway.images.bodies import GenerationBody
from tests.services.gateway.deployment import ROOT, Door
from tests.waiting import HANG_S

PAGE = (ROOT / "docs" / "http.md").read_text()
BLOCKS = re.findall(r"```sh\n(curl .*?)```", PAGE, re.DOTALL)
EXAMPLES = 20


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_curl_example_runs(door: Door, tmp_path: Path, block: str) -> None:
    script = block.replace("http://127.0.0.1:8000", door.url).replace("curl -s", "curl -fsS")
    environment = {**os.environ, "KEY": "sk-1"}
    command = ["sh", "-ec", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stderr) == (0, "")
    if (tmp_path / "pizza.png").exists():
        assert (tmp_path / "pizza.png").read_bytes().startswith(b"\x89PNG")
    elif '"stream"' in block:
        assert "event: image_generation.completed" in done.stdout
    else:
        assert json.loads(done.stdout)["data"]


def test_there_are_four_examples_and_the_tables_name_every_parameter_and_every_code() -> None:
    assert len(BLOCKS) == 4
    table = PAGE[PAGE.index("## Parameters") : PAGE.index("## Streams")]
    assert [name for name in GenerationBody.model_fields if f"`{name}`" not in table] == []
    source = Path(errors.__file__).read_text()
    answered = set(re.findall(r"_Kind\(\d+, \S+, \"(\w+)\"", source)) - {"internal_error", "unsupported"}
    told = set(re.findall(r"`(\w+)`", PAGE[PAGE.index("## Errors") :]))
    assert answered - {"resource_exhausted"} <= told


def test_the_document_describes_the_public_routes_alone(door: Door) -> None:
    document = door.get("/openapi.json").json()
    assert set(document["paths"]) == {
        *("/v1/images/generations", "/v1/images/edits"),
        *("/v1/models", "/v1/models/{name}"),
    }
    body = document["components"]["schemas"]["GenerationBody"]
    assert all(field.get("description") for field in body["properties"].values())


def test_whatever_the_document_allows_and_forbids_is_answered_as_it_says(door: Door, tmp_path: Path) -> None:
    """The command that docs/http.md names for a longer run, with fewer examples."""
    (command,) = re.findall(r"^schemathesis run .+$", PAGE, re.MULTILINE)
    words = command.replace("http://127.0.0.1:8000", door.url).split()
    words[words.index("--max-examples") + 1] = str(EXAMPLES)
    words[0] = str(Path(sys.executable).parent / words[0])
    done = subprocess.run(
        [*words, "--generation-deterministic"], cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "4 passed" in done.stdout or re.search(r"Tested: 4", done.stdout), done.stdout[-4000:]
