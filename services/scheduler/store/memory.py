"""Admission by Redis' memory: new jobs are refused while the results of all accepted ones still fit."""

from dataclasses import dataclass

from synerdiff.errors import FieldViolation, InvalidRequest, QueueFull

_MB = 1 << 20


@dataclass(frozen=True)
class RedisMemory:
    """What Redis used when last asked, of the memory at which it refuses writes; a `limit_bytes` of 0: none.

    `share`: of that limit, for all that Redis holds. The rest is for what comes between two askings, and for what
    nobody counts: the queue, the registry, buffers of Redis's own.
    """

    used_bytes: int = 0
    limit_bytes: int = 0
    share: float = 0.9

    @property
    def most_bytes(self) -> int:
        """What Redis may come to hold."""
        return round(self.share * self.limit_bytes)

    @property
    def room_bytes(self) -> int | None:
        """What the results of open jobs may take; None: as much as they like."""
        return max(0, self.most_bytes - self.used_bytes) if self.limit_bytes else None

    def refusal(self, expected_bytes: int, result_bytes: int, retry_after_s: float) -> QueueFull | InvalidRequest:
        """Why a request is refused whose results may take `result_bytes`, beside `expected_bytes` of accepted jobs."""
        most = f"{self.most_bytes / _MB:.0f} MB ({self.share:g} of Redis' maxmemory, by memory_share)"
        asked = f"the results of this request may take {result_bytes / _MB:.1f} MB"
        if result_bytes > self.most_bytes:
            return InvalidRequest(FieldViolation("num_images", f"{asked}, which is more than {most}"))
        full = f"Redis uses {self.used_bytes / _MB:.0f} MB and expects {expected_bytes / _MB:.0f} MB of accepted jobs"
        return QueueFull(f"{full}; {asked}, and the most is {most}", retry_after_s)
