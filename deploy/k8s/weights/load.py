"""Bring a model's files into a folder, whole or not at all: `load.py MODELS`; the WEIGHTS_* variables say which."""

import hashlib
import os
import sys
from pathlib import Path

from huggingface_hub import snapshot_download


def digest(folder: Path) -> str:
    """SHA-256 over the lines that `sha256sum` prints for every file of the folder, sorted by name."""
    whole = hashlib.sha256()
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    for name in sorted(name for name in files if not name.startswith(".cache/")):
        with files[name].open("rb") as file:
            whole.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
    return whole.hexdigest()


def main() -> int:
    """Download, compare, then move into place. Returns the exit status: 1 when the files are not the known ones."""
    wanted = os.environ["WEIGHTS_SHA256"]
    target = Path(sys.argv[1], os.environ["WEIGHTS_FOLDER"])
    if target.exists():
        found = digest(target)
        print(f"{target} is there: {found}")
        return 0 if found == wanted else 1
    partial = target.with_name(target.name + ".partial")
    snapshot_download(
        os.environ["WEIGHTS_REPOSITORY"],
        revision=os.environ["WEIGHTS_REVISION"],
        allow_patterns=os.environ["WEIGHTS_FILES"].split(),
        local_dir=partial,
    )
    found = digest(partial)
    if found != wanted:
        print(f"the files have WEIGHTS_SHA256={found}, not {wanted or 'one that is set'}: {target} is not made")
        return 1
    partial.rename(target)
    print(f"{target}: {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
