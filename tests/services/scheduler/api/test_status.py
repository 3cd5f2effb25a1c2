"""What the status says of a worker: from its record, and from the leader's books."""

from services.scheduler.api.status import worker_statuses
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from tests.services.scheduler.measured_profiles import record


def test_a_worker_is_shown_with_its_device_and_its_share() -> None:
    unet = record("unet", device="cuda: H100, 80 GiB", threads=0, mps_thread_percent=70, execution="compiled")
    shown, without_mps = worker_statuses([unet, record("vae")], None)
    assert (shown.device, shown.mps_thread_percent, shown.attached) == ("cuda: H100, 80 GiB", 70, False)
    assert (shown.execution, without_mps.execution) == ("compiled", "eager")
    assert without_mps.mps_thread_percent == 0


def test_a_worker_that_drains_is_shown_for_as_long_as_it_is_held() -> None:
    holdings = Holdings(max_deaths=1)
    holdings.unet["unet-0"] = UnetLaneState("unet-0", "GPU-1", "emoji", slots=8)
    holdings.vae["vae-0"] = VaeLaneState("vae-0", "GPU-1", "emoji", draining=True)
    still_announced = worker_statuses([record("unet"), record("vae")], holdings)
    assert [(status.worker_id, status.attached, status.draining) for status in still_announced] == [
        ("unet-0", True, False),
        ("vae-0", True, True),
    ]
    announced_no_more = worker_statuses([record("unet")], holdings)
    assert [(status.worker_id, status.kind, status.draining) for status in announced_no_more] == [
        ("unet-0", "unet", False),
        ("vae-0", "vae", True),
    ]
