"""Who calls, and what they may do: one value a caller, the same for a call's whole life."""

from contextvars import ContextVar
from dataclasses import dataclass

from synerdiff.requests import Priority


@dataclass(frozen=True)
class Caller:
    """A caller by name; "" is anonymous. `operator`: may use every service, not only make pictures."""

    name: str = ""
    operator: bool = False
    priorities: frozenset[Priority] = frozenset(Priority)


ANONYMOUS = Caller(operator=True)

# gRPC gives each call a task, and a task its own context.
_calling: ContextVar[Caller] = ContextVar("caller", default=ANONYMOUS)


def calling() -> Caller:
    """The caller of the call that runs; ANONYMOUS where nobody has to say who they are."""
    return _calling.get()


def set_calling(caller: Caller) -> None:
    """Say who makes the call that runs, once that is known."""
    _calling.set(caller)
