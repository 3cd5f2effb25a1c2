"""`python -m deploy.checks [FOLDER...]`: check kustomizations; without folders, every overlay and composition here."""

import sys
from functools import partial
from pathlib import Path

from deploy.checks.run import findings, sets
from deploy.checks.schemas import releases
from deploy.kustomize import CannotRender, render


def main(folders: list[str]) -> int:
    """Print the findings. Returns the exit status: 1 when there are any."""
    wrong = 0
    chosen = {folder: partial(render, Path(folder)) for folder in folders} or sets()
    for name, rendered in chosen.items():
        try:
            manifests = rendered()
        except CannotRender as error:
            print(f"{name}: {error}")
            wrong += 1
            continue
        found = findings(manifests)
        wrong += len(found)
        print(f"{name}: {len(manifests)} objects, {len(found) or 'no'} findings")
        print(*(f"  {finding}" for finding in found), sep="\n", end="\n" if found else "")
    print(f"Schemas of Kubernetes {', '.join(releases())}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
