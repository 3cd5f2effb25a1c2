"""Frozen dataclasses <-> protobuf messages by the names of their fields.

A field's annotation decides its form: a dataclass is a message, `tuple[X, ...]` a repeated field, a tuple of
fixed length a message by the order of its fields, `X | None` a message that may be unset, an IntEnum an enum's number.
The functions are compiled of source text, once per type, as dataclasses' own are: loops over fields take twice as long.
"""

from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from enum import IntEnum
from types import UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from google.protobuf.message import Message

T = TypeVar("T")
M = TypeVar("M", bound=Message)


def codec(kind: type[T], message: type[M], leave_out: Iterable[str] = ()) -> tuple[Callable[[T], M], Callable[[M], T]]:
    """The functions from a dataclass to its message and back; back raises ValueError on an enum's unknown number.

    `leave_out`: fields that one side alone has, at any depth; those of the dataclass are read as their defaults. Raises
    TypeError where one side lacks a field.
    """
    source = _Source(frozenset(leave_out))
    plain, read = source.of_dataclass(kind, message.DESCRIPTOR, "value", "value")
    return source.function(f"{source.name(message)}(**{plain})"), source.function(read)


class _Expressions(NamedTuple):
    """`plain`: a value's argument to a message's constructor. `read`: the value of a message's field."""

    plain: str
    read: str


class _Source:
    """Expressions over a value and a message, of which `given` and `pb` are the text, and the names in them.

    Arguments of a constructor are dictionaries to any depth: a message put into another one is copied as bytes.
    """

    def __init__(self, leave_out: frozenset[str]) -> None:
        self.names: dict[str, Any] = {}
        self._leave_out = leave_out

    def name(self, thing: object) -> str:
        """A name for a thing that expressions use."""
        name = f"_{len(self.names)}"
        self.names[name] = thing
        return name

    def function(self, expression: str) -> Any:
        """The function of `value` that an expression is."""
        return eval(f"lambda value: {expression}", self.names)

    def of_dataclass(self, kind: type, descriptor: Any, given: str, pb: str) -> _Expressions:
        """A dataclass as its message."""
        hints, members = get_type_hints(kind), descriptor.fields_by_name
        of_kind = {field.name: field for field in fields(kind)}
        odd = (of_kind.keys() ^ members.keys()) - self._leave_out
        if odd:
            raise TypeError(f"{kind.__name__} and {descriptor.full_name} do not both have: {', '.join(sorted(odd))}")
        plains, reads = {}, []
        for name, field in of_kind.items():
            if name in members:
                plains[name], read = self._of_field(hints[name], members[name], f"{given}.{name}", pb)
                reads.append(read)
            else:
                assert field.default is not MISSING, f"{kind.__name__}.{name} is left out and has no default"
                reads.append(self.name(field.default))
        as_it_is = plains == {name: f"{given}.{name}" for name in of_kind}
        plain = f"{given}.__dict__" if as_it_is else _dictionary(plains)
        return _Expressions(plain, f"{self.name(kind)}({', '.join(reads)})")

    def _of_field(self, hint: Any, field: Any, given: str, message: str) -> _Expressions:
        if not isinstance(hint, UnionType):
            return self._of(hint, field, given, f"{message}.{field.name}")
        plain, read = self._of(get_args(hint)[0], field, given, f"{message}.{field.name}")
        return _Expressions(
            f"None if {given} is None else {plain}", f"{read} if {message}.HasField({field.name!r}) else None"
        )

    def _of(self, hint: Any, field: Any, given: str, pb: str) -> _Expressions:
        kinds, is_tuple = get_args(hint), get_origin(hint) is tuple
        if is_tuple and kinds[-1] is Ellipsis:
            each = self.name(None)
            plain, read = self._of(kinds[0], field, each, each)
            return _Expressions(
                given if plain == each else f"[{plain} for {each} in {given}]",
                f"tuple({pb})" if read == each else f"tuple([{read} for {each} in {pb}])",
            )
        if is_tuple:
            members = enumerate(zip(kinds, field.message_type.fields, strict=True))
            parts = {each.name: self._of_field(part, each, f"{given}[{at}]", pb) for at, (part, each) in members}
            plains = {name: part.plain for name, part in parts.items()}
            return _Expressions(_dictionary(plains), f"({', '.join(part.read for part in parts.values())},)")
        if is_dataclass(hint):
            assert isinstance(hint, type)
            if pb.isidentifier():
                return self.of_dataclass(hint, field.message_type, given, pb)
            plain, read = self.of_dataclass(hint, field.message_type, given, "value")
            return _Expressions(plain, f"{self.name(self.function(read))}({pb})")
        return _Expressions(given, f"{self.name(hint)}({pb})" if issubclass(hint, IntEnum) else pb)


def _dictionary(members: dict[str, str]) -> str:
    return "{" + ", ".join(f"{name!r}: {expression}" for name, expression in members.items()) + "}"
