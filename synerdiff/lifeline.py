"""Runs a command that dies with its parent: `python lifeline.py PARENT_PID COMMAND [ARGUMENT ...]`.

A script of its own that imports next to nothing, so it costs some milliseconds only. On Linux the kernel kills the
command when its parent is gone, however it went; elsewhere the command lives until its parent stops it.
"""

import os
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent, `parent_pid`, is gone. Linux only."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # The parent may have died before the request was in force.
    if os.getppid() != parent_pid:
        sys.exit(1)


def main() -> None:
    """Bind this process's life to its parent's, then become the command."""
    parent_pid, *command = sys.argv[1:]
    if sys.platform == "linux":
        die_with_parent(int(parent_pid))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main()
