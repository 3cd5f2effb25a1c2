"""The least time that arithmetic allows: operations over the measured rate of products, bytes over that of copies."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]

_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Floors:
    """Of one run. `tflops` by dtype, `tb_per_s` of copies, `costs` by model; what was not measured has no floor."""

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
