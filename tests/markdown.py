"""Markdown pages of the repository: their headings, links and code, as GitHub reads them."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("bench", "deploy", "docs", "models", "protos", "services", "synerdiff", "synerdiff_cli", "tests")


def pages() -> list[Path]:
    """Every page that a person may read."""
    return sorted([ROOT / "README.md", *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])


def dead_links(page: Path, text: str) -> Iterator[str]:
    """The relative links of a page that lead to no file or to no heading, each with the reason. `text`: the page's."""
    for link in re.findall(r"\]\(([^)\s]+)\)", _without_code(text)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        target = target / "README.md" if anchor and target.is_dir() else target
        if not target.exists():
            yield f"no file: {path}"
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8") if path else text):
            yield f"no heading: {link}"


def missing_files(page: Path, text: str) -> Iterator[str]:
    """Source files that a page names and modules that it runs, where they are not in their usual places."""
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|lua|sh|c|proto))`", _without_blocks(text)):
        if not any((folder / name).exists() for folder in (page.parent, ROOT, ROOT / "services/scheduler")):
            yield f"no file: {name}"
    for name in re.findall(rf"\bpython -m ((?:{'|'.join(FOLDERS)})\.[a-z_.]*[a-z_])", text):
        module = ROOT / name.replace(".", "/")
        if not module.with_suffix(".py").exists() and not (module / "__main__.py").exists():
            yield f"no module: {name}"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings; the second of equal ones ends with -1."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+?)\s*$", _without_blocks(text), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()
        anchor = re.sub(r"[^\w -]", "", words).replace(" ", "-")
        times = sum(1 for other in found if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other))
        found.add(f"{anchor}-{times}" if times else anchor)
    return found


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _without_blocks(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", _without_blocks(text))
