"""Frozen values as JSON, by pydantic: profiles, and the records of jobs, models and workers in Redis.

Processes of several versions read each other's JSON during an upgrade. So:

- A missing field has its default, which has to mean the behaviour of versions without the field.
- An unknown field is ignored. But where a value is needed `whole`, as a leader needs the request that it draws, such a
  field makes the value unreadable, unless it is null, false, 0 or empty, which has to mean the same as missing.
  So an option that changes a picture is a field of the request; other options are better kept beside it.
- An unknown enum name makes a value unreadable.

The reader of many values fails the one job whose request is unreadable, or leaves the one card or worker out.
"""

from enum import IntEnum
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from synerdiff.errors import FieldViolation, InvalidRequest

T = TypeVar("T")

_UNKNOWN_FIELD = "unexpected_keyword_argument"


class JsonCodec(Generic[T]):
    """JSON of one type; errors of the whole value name it `name`. Make one per type: that takes milliseconds."""

    def __init__(self, kind: type[T], name: str) -> None:
        self._adapter = TypeAdapter(kind)
        self._name = name

    def dump(self, value: T) -> bytes:
        """The value in one line, enums by name."""
        return self._adapter.dump_json(value)

    def fields(self, value: T, without: set[str]) -> dict[str, Any]:
        """The value as JSON's own types."""
        fields: dict[str, Any] = self._adapter.dump_python(value, mode="json", exclude=without)
        return fields

    def parse(self, text: str | bytes, *, whole: bool = False) -> T:
        """The value; `whole`: unknown fields are refused. Raises InvalidRequest: each field, value and bound."""
        try:
            return self._adapter.validate_json(text, strict=True, extra="forbid" if whole else "ignore")
        except ValidationError as error:
            wrong = [each for each in error.errors(include_url=False) if not _says_nothing(each)]
            if not wrong:
                return self._adapter.validate_json(text, strict=True, extra="ignore")
            raise InvalidRequest(*map(self._violation, wrong)) from error

    def _violation(self, error: ErrorDetails) -> FieldViolation:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
        if error["type"] in ("missing", "missing_argument"):
            return FieldViolation(path, "missing")
        if error["type"] == _UNKNOWN_FIELD:
            return FieldViolation(path, f"{_short(error['input'])}; this version of SynerDiff does not know this field")
        return FieldViolation(path or self._name, f"{_short(error['input'])}: {error['msg']}")


def _says_nothing(error: ErrorDetails) -> bool:
    return error["type"] == _UNKNOWN_FIELD and not error["input"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class NamedEnum(IntEnum):
    """By number on the wire, by name in JSON. pydantic, which asks for the hook, is not loaded for it."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """The name, and nothing else, stands for a member."""
        from pydantic_core import core_schema

        names = core_schema.literal_schema(list(cls.__members__))
        to_name = core_schema.plain_serializer_function_ser_schema(lambda member: member.name)
        return core_schema.no_info_after_validator_function(cls.__getitem__, names, serialization=to_name)
