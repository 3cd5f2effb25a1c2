"""The tables of a run, as Markdown: for docs/gpu.md, and for the output at the end of a run."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.command import markdown_table, number
from bench.gpu.configs import FULL
from synerdiff.profiles import parse

Record = Mapping[str, Any]

_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Floors:
    """Of one run. `tflops` by dtype, `tb_per_s` of copies, `costs` by model; unmeasured ones have no floor."""

    tflops: Mapping[str, float] = field(default_factory=dict)
    tb_per_s: float = 0.0
    costs: Mapping[str, Record] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Floors":
        """From the records of a run."""
        tflops: dict[str, float] = {}
        tb_per_s, costs = 0.0, dict[str, Record]()
        for record in records:
            if record["kind"] == "ceiling" and "tflops" in record:
                tflops[record["what"].removeprefix("matmul ")] = record["tflops"]
            elif record["kind"] == "ceiling":
                tb_per_s = record["tb_per_s"]
            elif record["kind"] == "cost":
                costs[record["model"]] = record
        return cls(tflops, tb_per_s, costs)

    def item_ms(self, model: str, rows: float, decodes: float, dtype: str) -> float | None:
        """Of a UNet call of so many rows and so many decodes, weights read once each; None where it is not known."""
        cost, tflops = self.costs.get(model), self.tflops.get(dtype)
        if cost is None or not tflops or not self.tb_per_s:
            return None
        compute_ms: float = (rows * cost["row_tflop"] + decodes * cost["decode_tflop"]) / tflops * 1000
        parameters_m = cost["unet_parameters_m"] * (rows > 0) + cost["decoder_parameters_m"] * (decodes > 0)
        read_ms: float = parameters_m * 1e6 * _BYTES[dtype] / (self.tb_per_s * 1e12) * 1000
        return max(compute_ms, read_ms)

    def images_per_s(self, model: str, steps: int, dtype: str, skipped_share: float = 0.0) -> float | None:
        """Most pictures with guidance, of so many steps: two rows a call, one in those that go without guidance."""
        ms = self.item_ms(model, (2 - skipped_share) * steps, 1, dtype)
        return 1000 / ms if ms else None


# Published figures of others, to be read beside ours: source, measurement, figure.
ANCHORS: tuple[tuple[str, str, str], ...] = (
    ("SDXL", "MLPerf Inference v4.1, one H100, offline, 20 Euler steps, 1024x1024", "2.04 images/s"),
    ("SDXL", "MLPerf Inference v4.1, eight H100, server", "1.96 images/s a GPU, p99 10.7 s"),
    ("SDXL", "TensorRT, H100, 30 steps, one request", "1.47 s"),
    ("SD 1.5", "A100, batch 16, compiled, 20 steps, 512x512, UNet alone", "3.7 images/s"),
)


@dataclass(frozen=True)
class Run:
    records: Sequence[Record]
    floors: Floors
    card: str
    dtype: str

    @classmethod
    def read(cls, results: Path) -> "Run":
        """From results.jsonl. A last line that was cut short is left out."""
        records = []
        for line in results.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        machine: Record = next((record for record in records if record["kind"] == "machine"), {})
        dtype = "float16" if machine.get("gpu") else "float32"
        return cls(records, Floors.of(records), machine.get("card", "unknown card"), dtype)

    def of(self, kind: str) -> list[Record]:
        """The records of a kind; "cell": each cell of each model's best profile, "anchor": others' figures."""
        if kind == "anchor":
            named = (dict(zip(("model", "what", "figure"), anchor, strict=True)) for anchor in ANCHORS)
            return list(named) if self.of("load") else []
        if kind == "cell":
            return list(self._cells())
        return [record for record in self.records if record["kind"] == kind]

    def _cells(self) -> Iterator[Record]:
        rates = {r["model"]: r for r in sorted(self.of("profile"), key=lambda r: float(r["pictures_per_s"]))}
        for model, best in rates.items():
            for cell in parse(json.dumps(best["profile"])).cells:
                counts = {"rows": cell.rows, "decodes": cell.decodes, "bands": cell.setting.chunks}
                yield {"model": model, "way": best["way"], "ms": cell.median_ms, **counts}


def render(results: Path, *, brief: bool = False) -> str:
    """All tables of a results.jsonl that have rows; `brief`: without the long ones."""
    run = Run.read(results)
    parts = [_head(run)]
    for table in TABLES:
        if not (brief and table.long) and (text := table.text(run)):
            parts.append(f"### {table.title}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def _head(run: Run) -> str:
    machine = next(iter(run.of("machine")), None)
    if machine is None:
        return f"## {run.card}"
    gpu = f"driver {machine['driver']}, CUDA {machine['cuda']}, cuDNN {machine['cudnn']}; " if machine["gpu"] else ""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"## {run.card}\n\n{gpu}{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB; "
        f"Python {machine['python']}, torch {machine['torch']}, diffusers {machine['diffusers']}, {packages}.\n\n"
        "Models are of full size with **random weights**: times are theirs, pictures are none. A floor is the time by "
        "torch's count of operations at the rate of the matrix product measured here."
    )


@dataclass(frozen=True)
class Table:
    """A row for each record of a kind; where rows say of which card they are, those of several runs read together."""

    title: str
    kind: str
    names: Sequence[str]
    row: Callable[[Run, Record], Sequence[object]]
    says_card: bool = True
    long: bool = False

    def text(self, run: Run) -> str:
        """As Markdown; empty without rows."""
        rows = [self.row(run, record) for record in run.of(self.kind)]
        if not rows:
            return ""
        names = ("card", *self.names) if self.says_card else self.names
        return markdown_table(names, [(run.card, *row) if self.says_card else row for row in rows])


def _ceiling(run: Run, r: Record) -> Sequence[object]:
    return (r["what"], f"{r['tflops']:.4g} TFLOP/s" if "tflops" in r else f"{r['tb_per_s']:.3g} TB/s")


def _cost(run: Run, r: Record) -> Sequence[object]:
    floors = (number(run.floors.item_ms(r["model"], *of, run.dtype), 3) for of in ((2, 0), (0, 1)))
    return (r["title"], f"{r['unet_parameters_m']:.1f} M", f"{r['row_tflop']:.3g}", f"{r['decode_tflop']:.3g}", *floors)


def _parity(run: Run, r: Record) -> Sequence[object]:
    halves = (number(r.get(name), 1) for name in ("served_half_db", "diffusers_half_db"))
    return (f"{r['sampler']}, {r['steps']} steps", r["served_levels"], *halves)


def _load(run: Run, r: Record) -> Sequence[object]:
    offline = [o["images_per_s"] for o in run.of("load") if (o["load"], o["model"]) == ("offline", r["model"])]
    most = run.floors.images_per_s(r["model"], r["steps"], run.dtype, r.get("skipped_share", 0.0))
    rate = f" at {r['rate_per_s']:.3g}/s" if r.get("rate_per_s") else ""
    return (
        *(_title(r["model"]), r["who"], r["way"], r["load"] + rate, number(r["images_per_s"], 3), number(most, 3)),
        f"{r['images_per_s'] / most:.0%}" if most else "-",
        f"{r['images_per_s'] / max(offline):.2f}" if offline else "-",
        *(number(r.get("p50_s"), 2), number(r.get("p99_s"), 2)),
        f"{r['skipped_share']:.0%}" if r.get("skipped_share") else "-",
        r["images"] if not r.get("errors") else f"{r['images']}, failed: {r['errors']}",
    )


def _profiled(run: Run, record: Record) -> Sequence[object]:
    """The gain of running side by side, with its sign, of the item that gains most."""
    profile = parse(json.dumps(record["profile"]))
    both = [(cell.rows, cell.decodes) for cell in profile.cells if cell.rows and cell.decodes]
    rows, decodes = max(both, key=lambda item: profile.overlap_gain(*item), default=(0, 0))
    together_ms = profile.latency_ms(rows, decodes) if both else 0.0
    gains = [profile.overlap_gain(*item) for item in both] or [0.0]
    floor_ms = run.floors.item_ms(record["model"], rows, decodes, run.dtype)
    times = (number(ms, 2) for ms in (together_ms / (1 - max(gains)), together_ms, floor_ms))
    others = f" (other items {min(gains):+.1%} or more)" if len(gains) > 1 else ""
    taken = [f"{each.choice} {'on' if each.taken else 'off'} ({each.ratio:.2f})" for each in profile.evidence]
    about = (f"{record['pictures_per_s']:.2f}", profile.knee_rows(), ", ".join(taken) or "-")
    item = f"{rows} rows beside {decodes}"
    return (_title(record["model"]), record["way"], item, *times, f"{max(gains):+.1%}{others}", *about)


def _streams(run: Run, record: Record) -> Sequence[object]:
    steps, decodes = record["steps"], record["decodes"]
    floor = run.floors.item_ms(record["model"], steps * record["rows"], decodes, run.dtype)
    times = (number(ms, 2) for ms in (record["serial_ms"], record["together_ms"], floor))
    item = f"{steps} x {record['rows']} rows beside {decodes}"
    return (_title(record["model"]), record["way"], item, *times, f"{record['gain']:+.1%}", "-", "-", record["how"])


def _cell(run: Run, r: Record) -> Sequence[object]:
    timed = _timed(r["ms"], run.floors.item_ms(r["model"], r["rows"], r["decodes"], run.dtype))
    return (_title(r["model"]), r["way"], r["rows"], r["decodes"], r["bands"], *timed)


def _call(run: Run, r: Record) -> Sequence[object]:
    unet = r["part"] == "UNet"
    dtype = next((name for name in ("bfloat16", "float32", "float16") if name in r["how"]), run.dtype)
    floor = run.floors.item_ms(r["model"], r["count"] if unet else 0, 0 if unet else r["count"], dtype)
    what = f"{r['count']} rows" if unet else f"{r['count']} pictures"
    return (_title(r["model"]), r["part"], what, r["how"], *_timed(r["ms"], floor), r.get("peak_mib") or "-")


def _latents(run: Run, r: Record) -> Sequence[object]:
    counts = (", ".join(f"{name} {count}" for name, count in r[of].items()) or "none" for of in ("transports", "kills"))
    return (r["way"], *counts, r["whole"], len(r["violations"]), number(r["read_ms_p50"], 3))


_WHERE = ("model", "device")
_SIDE_BY_SIDE = (*_WHERE, "item", "in turn ms", "together ms", "floor ms", "gain", "images/s of it all", "knee, rows")
_LOADS = ("model", "who", "device", "load", "images/s", "at most", "of that", "of the best offline", "p50 s", "p99 s")
_COSTS = ("model", "UNet", "TFLOP a row", "TFLOP a decode", "floor of a call of 2 rows, ms", "floor of a decode, ms")
_PARITY = ("sampler", "served float32, levels off", "served float16, dB", "diffusers float16, dB")
_LATENTS = ("device", "transfers by", "killed", "whole", "torn, stale, lost or leaked", "read p50, ms")
_TIMED = ("ms", "floor ms", "times it")

TABLES = (
    Table("Sections", "section", ("section", "", "s", "last words"),
          lambda run, r: (r["title"], r["status"], f"{r['seconds']:g}", _line(r["error"])), says_card=False),
    Table("Ceilings", "ceiling", ("ceiling", ""), _ceiling),
    Table("CUDA MPS", "mps", ("", "program"), lambda run, r: (_line(r["said"]), r["program"] or "none")),
    Table("What a call costs", "cost", _COSTS, _cost, says_card=False),
    Table("Tests on the GPU", "test", ("test", "", "s", "why"),
          lambda run, r: (r["test"], r["outcome"], f"{r['s']:.1f}", _line(r["message"])), long=True),
    Table("Pictures of the bundled model against diffusers", "parity", _PARITY, _parity),
    Table("Served, and diffusers", "load", (*_LOADS, "skipped", "images"), _load),
    Table("CUDA graphs in service", "graphs", (*_WHERE, "batch sizes that ran without a graph"),
          lambda run, r: (_title(r["model"]), r["way"], r["sizes_without"])),
    Table("For comparison: published by others, not measured here", "anchor", ("model", "what", ""),
          lambda run, r: (r["model"], r["what"], r["figure"]), says_card=False),
    Table("Steps beside decodes", "profile", (*_SIDE_BY_SIDE, "found"), _profiled),
    Table("Steps beside decodes, on two streams of one process", "overlap", (*_SIDE_BY_SIDE, "found"), _streams),
    Table("Items, each model in its best way", "cell", (*_WHERE, "rows", "decodes", "bands", *_TIMED), _cell,
          long=True),
    Table("The same calls in other ways", "call", ("model", "part", "call", "how", *_TIMED, "peak MiB"), _call,
          long=True),
    Table("The VAE's dtype", "quality", ("", "dtype", "PSNR, dB"),
          lambda run, r: (r["what"], r["how"], number(r["psnr_db"], 1))),
    Table("Latents from process to process", "latents", _LATENTS, _latents),
    Table("Troubles", "trouble", ("section", "what", ""),
          lambda run, r: (r["section"], r["what"], _line(r["error"])), says_card=False),
)  # fmt: skip


def _timed(ms: float, floor_ms: float | None) -> tuple[str, str, str]:
    return number(ms, 2), number(floor_ms, 2), f"{ms / floor_ms:.1f}" if floor_ms else "-"


def _title(model: str) -> str:
    return next((config.title for name, config in FULL.items() if name == model), model)


def _line(text: Any) -> str:
    """The last line of a text, so that a table holds it."""
    lines = str(text).strip().splitlines()
    return lines[-1].replace("|", "/")[:160] if lines else ""
