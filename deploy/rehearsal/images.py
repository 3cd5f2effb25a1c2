"""The stand-ins for the images: this working tree and its interpreter, and a Redis binary of this machine."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from synerdiff.redis_process import find_redis_server

REPOSITORY = Path(__file__).parents[2]

_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
# Waiting threads sleep, as in every image: see deploy/docker.
_SERVICE_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
# float32 pictures are the same to a level or two in any batch, so that they can be compared; and like the images, which
# have no C++ compiler, this compiles nothing.
_COMPARABLE = {"SYNERDIFF_DTYPE": "float32", "SYNERDIFF_COMPILE": "off"}


@dataclass(frozen=True)
class Image:
    """A container's files beside this machine's interpreter and code: `links` to files here, its working folder
    and variables. `built_in`: options that a program has from the start in the image and not here, by its name.
    """

    links: Mapping[str, str]
    working_dir: str
    environment: Mapping[str, str]
    built_in: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def stand_in(name: str) -> Image:
    """The stand-in for the image `name`. Raises KeyError for one without a stand-in."""
    repository = name.split("@")[0].rpartition(":")[0] or name
    path = f"{Path(sys.prefix, 'bin')}:{_SYSTEM_PATH}"
    if repository.split("/")[-2:-1] == ["synerdiff"]:
        return Image({"/app": str(REPOSITORY)}, "/app", {"PATH": path, **_SERVICE_ENVIRONMENT, **_COMPARABLE})
    if repository.rpartition("/")[2] == "redis":
        programs = {"redis-server": find_redis_server(), "redis-cli": str(Path(__file__).with_name("redis_cli.py"))}
        links = {f"/image/bin/{program}": here for program, here in programs.items()}
        # Redis' own image is built to take clients from other addresses without a password.
        built_in = {"redis-server": ("--protected-mode", "no")}
        return Image(links, "/data", {"PATH": f"/image/bin:{path}"}, built_in)
    raise KeyError(f"nothing on this machine stands for the image {name}")


def visible() -> list[str]:
    """Folders that the interpreter and the code need, the outer one of two nested ones."""
    paths = sorted({Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), REPOSITORY.resolve()})
    return [str(path) for path in paths if not any(path.is_relative_to(other) for other in paths if other != path)]
