"""Run in an image by images_test.sh: `python - PINS < image_check.py`. Fails unless the process is confined as the
manifests have it, and the image holds the packages that its bill of materials lists, torch only for workers."""

import json
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

USER = 10001
READ_ONLY = ("/", "/app", "/etc", "/opt/synerdiff", "/usr/bin")
SBOM = Path("/opt/synerdiff/share/synerdiff/sbom.cdx.json")


def check_confinement() -> None:
    """Raises AssertionError for another user or group, a capability, a way to new ones, a writable root."""
    assert (os.getuid(), os.getgid(), os.getgroups()) == (USER, USER, []), "user or groups"
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    capabilities = {name: value for name, value in status.items() if name.startswith("Cap")}
    assert len(capabilities) == 5, capabilities
    assert not any(int(value, 16) for value in capabilities.values()), capabilities
    assert status["NoNewPrivs"] == "1"
    for folder in READ_ONLY:
        assert os.statvfs(folder).f_flag & os.ST_RDONLY, f"{folder} is writable"
    for folder in {"/tmp", os.environ["HOME"]}:
        tempfile.TemporaryFile(dir=folder).close()


def check_contents(pins: str) -> int:
    """Returns how many packages there are. Raises AssertionError where bill and packages differ, or torch is amiss."""
    bill = json.loads(SBOM.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    listed = {(component["name"].lower(), component["version"]) for component in bill["components"]}
    installed = {(found.name.lower(), found.version) for found in metadata.distributions()}
    assert listed | {("synerdiff", metadata.version("synerdiff"))} == installed, listed ^ installed
    assert any(name == "torch" for name, _ in installed) == pins.startswith("worker")
    return len(installed)


if __name__ == "__main__":
    check_confinement()
    count = check_contents(sys.argv[1])
    print(f"{count} packages, all in the bill of materials; user {USER}, root read-only, no capabilities")
