"""The results of `synerdiff bench` as JSON: every answer, and their summary."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from synerdiff.client.load.sending import Answer
from synerdiff.client.load.summary import Ratio, summarise
from synerdiff_cli.bench_run import Measured


def write_results(
    path: Path,
    about: Mapping[str, Any],
    measured: Mapping[str, Sequence[Measured]],
    ratios: Mapping[str, Mapping[str, Ratio]],
) -> None:
    """Write everything to a file; raises OSError. Numbers that there are none of are null."""
    servers = {
        name: {"summary": summarise([one.window for one in windows]), "rounds": list(map(_window_fields, windows))}
        for name, windows in measured.items()
    }
    whole = {**about, "servers": servers, "ratios": ratios}
    path.write_bytes(to_json(whole, indent=1, inf_nan_mode="null") + b"\n")


def _window_fields(one: Measured) -> dict[str, Any]:
    return {
        "began_unix_s": one.window.began_unix_s,
        "seconds": one.window.seconds,
        "summary": summarise([one.window]),
        "answers": list(map(_answer_fields, one.window.answers)),
        "unet_rows": one.unet_rows,
        "thresholds": one.thresholds,
    }


def _answer_fields(answer: Answer) -> dict[str, Any]:
    """An answer without its pictures."""
    fields = asdict(answer)
    del fields["pictures"]
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in fields.items()}
