"""Numbers of windows: throughput, latencies, errors; and their ratios between two servers, round by round."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from synerdiff.client.load.sending import Window

# The numbers of a summary that have ratios.
_COMPARED = ("images_per_s", "mean_s", "p50_s", "p99_s")


@dataclass(frozen=True)
class Summary:
    """Several windows of one server. Latencies in s, over all answers with images; NaN where there is none.

    `images_per_s`: the median of the windows'. `errors`: how many of each gRPC code. `skipped_share`: of the UNet calls
    whose number is known. `late_s`: the delay between due and sent that 99 % of the requests kept within; more than a
    few milliseconds is the client's own slowness.
    """

    requests: int
    images: int
    images_per_s: float
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float
    errors: Mapping[str, int]
    skipped_share: float
    late_s: float


def summarise(windows: Sequence[Window]) -> Summary:
    """The numbers of windows of one server."""
    answers = [answer for window in windows for answer in window.answers]
    served = [answer for answer in answers if not answer.error]
    latencies = [answer.latency_s for answer in served]
    calls = sum(answer.unet_calls for answer in served)
    return Summary(
        requests=len(answers),
        images=sum(answer.images for answer in served),
        images_per_s=statistics.median(window.images_per_s for window in windows) if windows else math.nan,
        mean_s=statistics.fmean(latencies) if latencies else math.nan,
        p50_s=percentile(latencies, 50),
        p90_s=percentile(latencies, 90),
        p99_s=percentile(latencies, 99),
        max_s=max(latencies, default=math.nan),
        errors=dict(Counter(answer.error for answer in answers if answer.error)),
        skipped_share=sum(answer.skipped_calls for answer in served) / calls if calls else 0.0,
        late_s=percentile([answer.sent_s - answer.due_s for answer in answers], 99),
    )


def percentile(values: Iterable[float], p: float) -> float:
    """The smallest value that at least p percent of `values` do not exceed; NaN of none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)]


@dataclass(frozen=True)
class Ratio:
    """A value of one server over that of another, in each round; NaN where either had none."""

    per_round: tuple[float, ...]
    median: float
    lower_quartile: float
    upper_quartile: float


def ratio(values: Sequence[float], others: Sequence[float]) -> Ratio:
    """`values` over `others`, a round each."""
    per_round = tuple(value / other if other else math.nan for value, other in zip(values, others, strict=True))
    known = [one for one in per_round if math.isfinite(one)]
    if not known:
        return Ratio(per_round, math.nan, math.nan, math.nan)
    lower, middle, upper = statistics.quantiles(known, n=4, method="inclusive") if len(known) > 1 else known * 3
    return Ratio(per_round, middle, lower, upper)


def window_ratios(windows: Sequence[Window], others: Sequence[Window]) -> dict[str, Ratio]:
    """Throughput and latencies of one server over those of another that got the same loads, by name."""
    ours, theirs = ([summarise([window]) for window in each] for each in (windows, others))
    return {name: ratio([getattr(s, name) for s in ours], [getattr(s, name) for s in theirs]) for name in _COMPARED}
