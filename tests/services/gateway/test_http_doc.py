"""docs/http.md against a gateway: every curl example runs, and the tables name what there is."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from services.gateway import errors
from services.gateway.images.bodies import GenerationBody
from tests.services.gateway.deployment import ROOT, Door
from tests.waiting import HANG_S

PAGE = (ROOT / "docs" / "http.md").read_text()
BLOCKS = re.findall(r"```sh\n(curl .*?)```", PAGE, re.DOTALL)


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


def test_there_is_an_example_of_each_kind() -> None:
    assert len(BLOCKS) == 4


def test_the_tables_name_every_parameter_and_every_code() -> None:
    table = PAGE[PAGE.index("## Parameters") : PAGE.index("## Streams")]
    assert [name for name in GenerationBody.model_fields if f"`{name}`" not in table] == []
    source = Path(errors.__file__).read_text()
    answered = set(re.findall(r"_Kind\(\d+, \S+, \"(\w+)\"", source)) - {"internal_error", "unsupported"}
    told = set(re.findall(r"`(\w+)`", PAGE[PAGE.index("## Errors") :]))
    assert answered - {"resource_exhausted"} <= told
