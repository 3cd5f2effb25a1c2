"""An arena's description as its message and back."""

from synerdiff.latents.description import ArenaDescription
from synerdiff.v1 import stages_pb2
from synerdiff.wire.codec import codec

arena_description_to_pb, arena_description_from_pb = codec(ArenaDescription, stages_pb2.ArenaDescription)
