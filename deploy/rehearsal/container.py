"""Runs one container's command: `python container.py PARENT_PID SPEC`, SPEC being a file of JSON (see `main`).

A script of its own that imports next to nothing. The process stays as the container's keeper: it passes SIGTERM on,
ends as the command ended, and takes the command with it when it is killed itself. Everything it makes (mounts, process
ids) belongs to namespaces that end with it.
"""

import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from deploy.rehearsal import namespaces as ns
from synerdiff import lifeline

_CANNOT_RUN = 127


def main() -> None:
    """Become the keeper of a container.

    SPEC: `network` (path of a namespace), `scratch` (an empty folder), `links`, `binds`, `hosts` (a folder), `shm` (a
    folder), `visible` (paths of this machine that the image stands on), `read_only`, `uid`, `gid`, `cwd`,
    `environment`, `command`, `hostname`.
    """
    parent, path = sys.argv[1:]
    lifeline.die_with_parent(int(parent))
    spec = json.loads(Path(path).read_text())
    ns.enter_network(spec["network"])
    ns.unshare(ns.NEW_MOUNTS | ns.NEW_PIDS | ns.NEW_IPC | ns.NEW_HOSTNAME)
    child = os.fork()
    if child == 0:
        _become(spec)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _become(spec: dict[str, Any]) -> None:
    try:
        lifeline.die_with_parent(0)  # the keeper's id as it reads in here
        ns.set_hostname(spec["hostname"])
        root = _image(spec)
        os.chroot(root)
        os.chdir(spec["cwd"])
        if os.getuid() == 0 and spec["uid"]:
            os.setgroups([])
            os.setgid(spec["gid"])
            os.setuid(spec["uid"])
        ns.forbid_new_privileges()
        # Again: a change of user has taken the request back.
        lifeline.die_with_parent(0)
        os.execvpe(spec["command"][0], spec["command"], spec["environment"])
    except OSError as error:
        print(f"cannot run {spec['command'][0]}: {error}", file=sys.stderr, flush=True)
        os._exit(_CANNOT_RUN)


def _image(spec: dict[str, Any]) -> str:
    """The container's own view of the files: this machine's, under a layer of its own. Returns its root."""
    ns.mount("", "/", flags=ns.PRIVATE | ns.RECURSIVE)
    scratch = spec["scratch"]
    for name in ("upper", "work", "root"):
        os.makedirs(f"{scratch}/{name}", exist_ok=True)
    root = f"{scratch}/root"
    ns.mount("overlay", root, "overlay", options=f"lowerdir=/,upperdir={scratch}/upper,workdir={scratch}/work")
    volumes = [target for _, target, _ in spec["binds"]]
    hidden = [path for path in spec["visible"] if any(Path(path).is_relative_to(target) for target in volumes)]
    _show(root, (path for path in spec["visible"] if path not in hidden))
    for link, target in spec["links"].items():
        _make_link(root + link, target)
    ns.mount("proc", f"{root}/proc", "proc")
    ns.mount("/sys", f"{root}/sys", flags=ns.BIND | ns.RECURSIVE)
    ns.mount("/dev", f"{root}/dev", flags=ns.BIND | ns.RECURSIVE)
    ns.mount(spec["shm"], f"{root}/dev/shm", flags=ns.BIND)
    # A folder, not the file: the names in it change while the container runs, by a rename.
    _bind(spec["hosts"], f"{root}/run/cluster", read_only=True)
    _make_link(f"{root}/etc/hosts", "/run/cluster/hosts")
    _make_link(f"{root}/etc/resolv.conf", "/run/cluster/resolv.conf")
    for source, target, read_only in spec["binds"]:
        _bind(source, root + target, read_only)
    _show(root, hidden)  # a working tree in /tmp, say, where the container has a volume
    if spec["read_only"]:
        ns.mount("", root, flags=ns.REMOUNT | ns.BIND | ns.READ_ONLY)
    return root


def _show(root: str, paths: Iterable[str]) -> None:
    for path in paths:
        _let_through(root, path)
        _bind(path, root + path, read_only=True)


def _let_through(root: str, path: str) -> None:
    """Let every user pass the folders above `path`, in the container's layer alone: an image's own would."""
    for parent in Path(path).parents:
        inside = root + str(parent)
        if os.path.isdir(inside) and not os.stat(inside).st_mode & 0o001:
            os.chmod(inside, os.stat(inside).st_mode | 0o011)


def _bind(source: str, target: str, read_only: bool) -> None:
    os.makedirs(target, exist_ok=True)
    ns.mount(source, target, flags=ns.BIND | ns.RECURSIVE)
    if read_only:
        ns.mount("", target, flags=ns.REMOUNT | ns.BIND | ns.READ_ONLY)


def _make_link(link: str, target: str) -> None:
    os.makedirs(os.path.dirname(link), exist_ok=True)
    if os.path.lexists(link):
        os.unlink(link)
    os.symlink(target, link)


if __name__ == "__main__":
    main()
