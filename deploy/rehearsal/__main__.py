"""`python -m deploy.rehearsal`: an overlay's manifests, run as processes of this machine, scaled, killed, restarted.

See README.md. Exit status 0 when every check has held.
"""

import argparse
import sys
from pathlib import Path

from deploy.rehearsal.images import REPOSITORY


def main() -> int:
    """Parse the command line and rehearse."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.rehearsal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--overlay", type=Path, default=REPOSITORY / "deploy/k8s/overlays/dev-cpu")
    parser.add_argument("--only", default="", help="scenarios by comma; default: all but short-scaling")
    parser.add_argument("--short", action="store_true", help="only short-scaling, with one scheduler")
    parser.add_argument("--loopback", action="store_true", help="do without namespaces")
    parser.add_argument("--logs", type=Path, help="folder to keep the pods' logs in")
    parser.add_argument("--quiet", action="store_true", help="print the table only")
    for name, kind, what in (
        ("requests", int, "different requests in the load"),
        ("clients", int, "clients at once"),
        ("least-steps", int, "steps of the shortest picture"),
        ("most-steps", int, "steps of the longest picture"),
        ("seed", int, "draws requests and disturbances"),
        ("chaos-s", float, "seconds of chaos"),
        ("kill-every-s", float, "mean seconds between two disturbances"),
        ("measure-s", float, "seconds of each measurement of throughput"),
        ("hold-s", float, "seconds of load after each change"),
        ("patience-s", float, "seconds after which something has not come about"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=what)
    options = parser.parse_args()

    from deploy.rehearsal import sandbox

    folder = sandbox.make_log_folder()
    reason = "asked for" if options.loopback else sandbox.why_not_isolated()
    place = sandbox.plain(folder, reason) if reason else sandbox.isolated()

    from deploy.rehearsal.play import play

    return play(options, place, folder)


if __name__ == "__main__":
    sys.exit(main())
