"""What a profile says a device can do at best: ms per UNet row and per decode, requests per second."""

from typing import NamedTuple

from synerdiff.profiles import Profile


class Costs(NamedTuple):
    """Device time of the least unit of each kind of work, when the device is run at its best.

    `row_ms`: one UNet row in an item of as many rows as give the highest throughput. `decode_ms`: what one more decode
    adds, beside such an item or alone, whichever is less.
    """

    row_ms: float
    decode_ms: float

    def task_ms(self, rows: float, decodes: float) -> float:
        """Device time of `rows` UNet rows, summed over calls, and `decodes` decodes."""
        return rows * self.row_ms + decodes * self.decode_ms


def best_costs(profile: Profile) -> Costs:
    """The least device time per row and per decode within the profile's caps."""
    rows = max(range(1, 2 * profile.caps.unet + 1), key=lambda r: r / profile.latency_ms(r, 0))
    alone_ms = profile.latency_ms(rows, 0)
    decodes = []
    for v in range(1, profile.caps.vae + 1):
        decodes.append(profile.latency_ms(0, v) / v)
        beside = profile.choice(rows, v)
        if beside is not None:
            decodes.append(max(0.0, beside.ms - alone_ms) / v)
    return Costs(alone_ms / rows, min(decodes))
