"""An arena's description as its message and back."""

from synerdiff.latents.description import ArenaDescription, TransportOffer
from synerdiff.v1 import stages_pb2


def arena_description_to_pb(arena: ArenaDescription) -> stages_pb2.ArenaDescription:
    """ArenaDescription as its message."""
    return stages_pb2.ArenaDescription(
        arena_id=arena.arena_id,
        slots=arena.slots,
        slot_bytes=arena.slot_bytes,
        dtype=arena.dtype,
        offers=[
            stages_pb2.TransportOffer(
                transport=offer.transport,
                pattern=offer.pattern,
                boot_id=offer.boot_id,
                pid=offer.pid,
                shm_path=offer.shm_path,
            )
            for offer in arena.offers
        ],
    )


def arena_description_from_pb(pb: stages_pb2.ArenaDescription) -> ArenaDescription:
    """ArenaDescription from its message."""
    offers = tuple(TransportOffer(o.transport, o.pattern, o.boot_id, o.pid, o.shm_path) for o in pb.offers)
    return ArenaDescription(pb.arena_id, pb.slots, pb.slot_bytes, pb.dtype, offers)
