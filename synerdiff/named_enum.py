"""Enums of the API's numbers that JSON has by name."""

from enum import IntEnum
from typing import Any


class NamedEnum(IntEnum):
    """By number on the wire, by name in JSON. pydantic, which asks for the hook, is not loaded for it."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """The name, and nothing else, stands for a member."""
        from pydantic_core import core_schema

        names = core_schema.literal_schema(list(cls.__members__))
        to_name = core_schema.plain_serializer_function_ser_schema(lambda member: member.name)
        return core_schema.no_info_after_validator_function(cls.__getitem__, names, serialization=to_name)
