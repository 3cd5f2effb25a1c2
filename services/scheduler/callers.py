"""The caller of a call, with its rights: one value per caller, the same for a call's whole life."""

from contextvars import ContextVar
from dataclasses import dataclass

from synerdiff.requests import Priority

COUNTS = ("waiting_jobs", "waiting_images", "open_jobs", "open_images")


@dataclass(frozen=True)
class Quota:
    """Bounds on one caller; 0: no bound. An open job has not ended: it waits or runs. `requests_per_s`: of Generate and
    Submit at each scheduler, with bursts of up to a second's worth."""

    waiting_jobs: int = 0
    waiting_images: int = 0
    open_jobs: int = 0
    open_images: int = 0
    requests_per_s: float = 0.0

    @property
    def counts(self) -> tuple[int, ...]:
        """The bounds that the queue keeps, in the order of COUNTS."""
        return tuple(getattr(self, name) for name in COUNTS)


@dataclass(frozen=True)
class Caller:
    """A caller by name; "" is anonymous. `operator`: may use every service, not only make pictures."""

    name: str = ""
    operator: bool = False
    priorities: frozenset[Priority] = frozenset(Priority)
    quota: Quota = Quota()


ANONYMOUS = Caller(operator=True)

# gRPC gives each call a task, and a task its own context.
_calling: ContextVar[Caller] = ContextVar("caller", default=ANONYMOUS)


def calling() -> Caller:
    """The caller of the running call; ANONYMOUS where callers are not identified."""
    return _calling.get()


def set_calling(caller: Caller) -> None:
    """Set the caller of the running call."""
    _calling.set(caller)
