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
                cuda_handle=offer.cuda_handle,
                gpu_uuid=offer.gpu_uuid,
                uid=offer.uid,
                epoch=offer.epoch,
            )
            for offer in arena.offers
        ],
    )


def arena_description_from_pb(pb: stages_pb2.ArenaDescription) -> ArenaDescription:
    """ArenaDescription from its message."""
    offers = tuple(_offer_from_pb(offer) for offer in pb.offers)
    return ArenaDescription(pb.arena_id, pb.slots, pb.slot_bytes, pb.dtype, offers)


def _offer_from_pb(pb: stages_pb2.TransportOffer) -> TransportOffer:
    return TransportOffer(
        transport=pb.transport,
        pattern=pb.pattern,
        boot_id=pb.boot_id,
        pid=pb.pid,
        shm_path=pb.shm_path,
        cuda_handle=pb.cuda_handle,
        gpu_uuid=pb.gpu_uuid,
        uid=pb.uid,
        epoch=pb.epoch,
    )
