"""Who calls, and what they may do: one value a caller, the same for a call's whole life."""

from contextvars import ContextVar
from dataclasses import dataclass

from synerdiff.requests import Priority


@dataclass(frozen=True)
class Quota:
    """What one caller may have at once; 0: no bound. Open jobs have not ended: they wait or run. `requests_per_s`: of
    Generate and Submit, a second's worth at once, at each scheduler."""

    waiting_jobs: int = 0
    waiting_images: int = 0
    open_jobs: int = 0
    open_images: int = 0
    requests_per_s: float = 0.0

    @property
    def counts(self) -> tuple[int, ...]:
        """The bounds that the queue keeps, in the order of COUNTS."""
        return tuple(getattr(self, name) for name in COUNTS)


COUNTS = ("waiting_jobs", "waiting_images", "open_jobs", "open_images")


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
    """The caller of the call that runs; ANONYMOUS where nobody has to say who they are."""
    return _calling.get()


def set_calling(caller: Caller) -> None:
    """Say who makes the call that runs, once that is known."""
    _calling.set(caller)
