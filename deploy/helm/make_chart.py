"""The Helm chart: `python -m deploy.helm.make_chart FOLDER` writes it, each overlay as kustomize renders it inside.

The overlays stay the only manifests: the chart is made from them, so the two cannot differ. ConfigMaps lose
the hash in their names, which kustomize makes of their contents: Helm changes those, and a pod's annotation instead.
"""

import re
import shutil
import sys
from pathlib import Path

from deploy.kustomize import overlays, render_text

CHART = Path(__file__).parent / "chart"
_HASHED = re.compile(r"\b(services|scheduler|gateway|workers)-[0-9a-z]{10}\b")


def main(folder: Path) -> None:
    """Write the chart into `folder`, anew. Raises CannotRender."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(CHART, folder)
    files = folder / "files"
    files.mkdir()
    for overlay in overlays():
        text = _HASHED.sub(lambda match: match[1], render_text(overlay))
        (files / f"{overlay.name}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
