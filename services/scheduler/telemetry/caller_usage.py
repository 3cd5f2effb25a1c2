"""What each caller asks for, as metrics with a bounded number of labels."""

from prometheus_client import Counter

from services.scheduler.callers import Caller
from synerdiff.requests import ImageRequest, rows_of_call

# Certificates' names are as many as their CA gives out: those that come later are counted together.
MOST_NAMES = 200
OTHERS = "(others)"

_requests = Counter("synerdiff_caller_requests_total", "Generate and Submit calls by caller", ["caller", "outcome"])
_images = Counter("synerdiff_caller_images_total", "Images of accepted jobs by caller", ["caller"])
_steps = Counter(
    "synerdiff_caller_row_steps_total", "Denoising steps asked for by caller, times UNet rows and images", ["caller"]
)


class CallerUsage:
    """One for a process. The caller "" is anonymous."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def accepted(self, caller: Caller, request: ImageRequest) -> None:
        """A new job."""
        name = self._label(caller)
        _requests.labels(name, "accepted").inc()
        _images.labels(name).inc(request.num_images)
        _steps.labels(name).inc(request.num_images * request.num_inference_steps * rows_of_call(request.guidance_scale))

    def refused(self, caller: Caller) -> None:
        """A call that made no job."""
        _requests.labels(self._label(caller), "refused").inc()

    def _label(self, caller: Caller) -> str:
        if caller.name not in self._names and len(self._names) >= MOST_NAMES:
            return OTHERS
        self._names.add(caller.name)
        return caller.name
