"""Bytes that are no message: what is wrong with them, by the field where that can be told."""

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from synerdiff.errors import FieldViolation, InvalidRequest

_LENGTH_DELIMITED = 2  # the wire type of strings, bytes and messages


def refusal(deserialize: Callable[[bytes], Any], data: bytes) -> InvalidRequest:
    """Why `data` is refused by `deserialize`, a message class's FromString."""
    descriptor = getattr(getattr(deserialize, "__self__", None), "DESCRIPTOR", None)
    violations = tuple(_bad_texts(descriptor, data)) if descriptor is not None else ()
    if violations:
        return InvalidRequest(*violations)
    name = descriptor.name if descriptor is not None else "message"
    return InvalidRequest(FieldViolation("request", f"{len(data)} bytes that are no serialized {name}"))


def _bad_texts(descriptor: Any, data: bytes) -> Iterator[FieldViolation]:
    """The string fields whose bytes are not UTF-8. As unknown fields they are read without a check of it."""
    message = Empty()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return
    unknowns = UnknownFieldSet(message)
    for unknown in (unknowns[at] for at in range(len(unknowns))):
        field = descriptor.fields_by_number.get(unknown.field_number)
        if field is None or field.type != FieldDescriptor.TYPE_STRING or unknown.wire_type != _LENGTH_DELIMITED:
            continue
        try:
            unknown.data.decode()
        except UnicodeDecodeError as error:
            wrong = f"byte {unknown.data[error.start]:#04x} at index {error.start} of {len(unknown.data)}"
            yield FieldViolation(field.name, f"{wrong} is not UTF-8")
