"""What operators see of how ticks are planned: profiles, corrections and thresholds, as messages and as gauges."""

from services.scheduler.holdings import Holdings
from services.scheduler.metrics import PoolMetrics
from services.scheduler.observer import Observer
from services.scheduler.policy.controller import ThresholdController
from services.scheduler.policy.pace import Pace
from services.scheduler.snapshots import BatchKey, Thresholds
from synerdiff.profiles import Profile
from synerdiff.v1 import operations_pb2


def planning_statuses(holdings: Holdings, observer: Observer) -> list[operations_pb2.PlanningStatus]:
    """One for each domain and batch key with a profile, and one for each domain that plans without any."""
    statuses = [
        _profiled(domain, key, profile, observer) for (domain, key), profile in sorted(holdings.profiles.items())
    ]
    domains = {lane.domain for lane in (*holdings.unet.values(), *holdings.vae.values())}
    for domain in sorted(domains - {status.domain for status in statuses}):
        threshold = observer.thresholds.get(domain, 0.0)
        statuses.append(operations_pb2.PlanningStatus(domain=domain, threshold=threshold))
    return statuses


def set_planning_gauges(
    metrics: PoolMetrics, holdings: Holdings, observer: Observer, thresholds: Thresholds | None
) -> None:
    """Threshold and state of its controller by domain, drift by profile."""
    for gauge in (metrics.threshold, metrics.profile_drift, metrics.controller):
        gauge.clear()
    domains = {lane.domain for lane in holdings.unet.values()}
    for domain in domains:
        state = thresholds.state(domain) if isinstance(thresholds, ThresholdController) else None
        for term, value in state._asdict().items() if state else ():
            metrics.controller.labels(domain, term).set(value)
    for domain, threshold in observer.thresholds.items():
        if threshold and domain in domains:
            metrics.threshold.labels(domain).set(threshold)
    for (domain, key), correction in observer.corrections.items():
        if (domain, key) in holdings.profiles:
            metrics.profile_drift.labels(domain, key.model, f"{key.width}x{key.height}").set(correction.drift)


def _profiled(domain: str, key: BatchKey, profile: Profile, observer: Observer) -> operations_pb2.PlanningStatus:
    correction = observer.corrections.get((domain, key))
    original = correction.original if correction and correction.current is profile else profile
    threshold = observer.thresholds.get(domain, 0.0)
    return operations_pb2.PlanningStatus(
        domain=domain,
        model=key.model,
        width=key.width,
        height=key.height,
        threshold=threshold,
        knee_rows=Pace.of(profile, threshold or 1.0).rows,
        profile_digest=original.digest,
        profile_made_at=original.made_at,
        profile_origin=", ".join(sorted({cell.origin for cell in original.cells})),
        profile_drift=correction.drift if correction else 0.0,
        profile_corrected=profile is not original,
    )
