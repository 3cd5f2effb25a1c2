"""The results of `synerdiff bench` as JSON: every answer, and their summary."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
        name: {
            "summary": asdict(summarise([one.window for one in windows])),
            "rounds": [window_fields(one) for one in windows],
        }
        for name, windows in measured.items()
    }
    whole = {
        **about,
        "servers": servers,
        "ratios": {name: {k: asdict(v) for k, v in of.items()} for name, of in ratios.items()},
    }
    path.write_text(json.dumps(without_nan(whole), indent=1) + "\n", encoding="utf-8")


def window_fields(one: Measured) -> dict[str, Any]:
    """A window as JSON has it."""
    return {
        "began_unix_s": one.window.began_unix_s,
        "seconds": one.window.seconds,
        "summary": asdict(summarise([one.window])),
        "answers": [answer_fields(answer) for answer in one.window.answers],
        "unet_rows": one.unet_rows,
        "thresholds": one.thresholds,
    }


def answer_fields(answer: Answer) -> dict[str, Any]:
    """An answer as JSON has it, without pictures."""
    fields = asdict(answer)
    del fields["pictures"]
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in fields.items()}


def without_nan(value: Any) -> Any:
    """The same with null for NaN, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
