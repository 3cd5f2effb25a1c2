"""The files that commands are to write: refused before anything is sent or started."""

from pathlib import Path

from synerdiff_cli.console import EXIT_INVALID, fail

_PICTURE_SUFFIXES = (".png", ".svg", ".pdf")


def check_folder(option: str, path: Path | None) -> None:
    """Exit where the folder of an option's file is not there."""
    if path is not None and not path.parent.is_dir():
        fail(f"{option}: there is no folder {path.parent}", EXIT_INVALID)


def check_plot(path: Path | None) -> None:
    """Exit where --plot's picture could not be drawn or written."""
    if path is None:
        return
    if path.suffix.lower() not in _PICTURE_SUFFIXES:
        fail(f"--plot: {path} has no suffix of a picture: one of {', '.join(_PICTURE_SUFFIXES)}", EXIT_INVALID)
    check_folder("--plot", path)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        fail("--plot needs matplotlib; install it with: pip install 'synerdiff[local]'", EXIT_INVALID)
