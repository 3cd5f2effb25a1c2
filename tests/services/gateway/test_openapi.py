"""The OpenAPI document, and what schemathesis makes of it: no server error, and no answer that the document lacks."""

import re
import subprocess
import sys
from pathlib import Path

from tests.services.gateway.deployment import ROOT, Door
from tests.waiting import HANG_S

EXAMPLES = 20


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
    (command,) = re.findall(r"^schemathesis run .+$", (ROOT / "docs" / "http.md").read_text(), re.MULTILINE)
    words = command.replace("http://127.0.0.1:8000", door.url).split()
    words[words.index("--max-examples") + 1] = str(EXAMPLES)
    words[0] = str(Path(sys.executable).parent / words[0])
    done = subprocess.run(
        [*words, "--generation-deterministic"], cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "4 passed" in done.stdout or re.search(r"Tested: 4", done.stdout), done.stdout[-4000:]
