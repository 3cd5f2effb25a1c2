"""The pages as GitHub shows them: links lead somewhere, and README.md to every page."""

import re
from pathlib import Path

import pytest

from tests.markdown import ROOT, anchors, dead_links, missing_files, pages

PAGES = pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert list(dead_links(page, page.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_modules_that_are_named_exist(page: Path) -> None:
    assert list(missing_files(page, page.read_text(encoding="utf-8"))) == []


def test_a_missing_file_or_module_is_found() -> None:
    text = "`engine/engine.py`, `synerdiff/jobs.py`, `engine/engines.py`\n\n```sh\npython `made/up.py`\n```\n"
    assert list(missing_files(ROOT / "docs/api.md", text)) == ["no file: engine/engines.py"]
    text = "`python -m bench.load`, `python -m pytest`, `python -m deploy.rehearsal`.\n\n    python -m bench.loads\n"
    assert list(missing_files(ROOT / "docs/api.md", text)) == ["no module: bench.loads"]


@pytest.mark.parametrize(
    ("link", "found"),
    [
        ("docs/api.md", []),
        ("docs/apis.md", ["no file: docs/apis.md"]),
        ("docs/api.md#errors", []),
        ("docs/api.md#mistakes", ["no heading: docs/api.md#mistakes"]),
        ("docs/pictures/nothing.png", ["no file: docs/pictures/nothing.png"]),
        ("#serve", []),
        ("#serves", ["no heading: #serves"]),
        ("deploy/k8s#tls", []),
        ("deploy/k8s#ssl", ["no heading: deploy/k8s#ssl"]),
        ("https://example.org/nothing#here", []),
    ],
)
def test_a_dead_link_is_found(link: str, found: list[str]) -> None:
    text = f"## Serve\n\n[page]({link})\n"
    assert list(dead_links(ROOT / "README.md", text)) == found


def test_a_comment_in_code_is_no_heading_and_a_link_in_code_no_link() -> None:
    text = "## Same, *again*\n\n```sh\n# comment\n[x](nowhere.md)\n```\n\n## Same, again\n\n`[y](nowhere.md)`\n"
    assert anchors(text) == {"same-again", "same-again-1"}
    assert list(dead_links(ROOT / "README.md", text)) == []


def test_every_page_of_docs_is_one_link_from_the_readme() -> None:
    """Benchmarks of single machines are linked from docs/benchmarks.md."""
    first = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/benchmarks.md")]
    linked = set(re.findall(r"\((?:docs/)?([\w-]+\.md)[)#]", "\n".join(first)))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - linked == set()


def test_the_readme_says_on_its_first_screen_that_no_gpu_was_there() -> None:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25]
    assert "never run on a GPU or on a Kubernetes cluster" in " ".join(first_screen)
