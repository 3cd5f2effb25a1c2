"""Where the image files of results are: in Redis beside their records, or in a directory or bucket (`image_files.py`).

A file is put before Redis hears of its image, so an image that a job has was kept. A record without bytes says that
they are elsewhere. Files whose job Redis does not know any more are swept (`sweeps.py`), however they came to be left.
An image depends on its request alone, within rounding, so two leaders may put the same one: the last file stays.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from synerdiff.errors import SynerDiffError, Unavailable
from synerdiff.requests import ImageRequest
from synerdiff.v1 import images_pb2

# No PNG or lossless WebP is larger than its pixels by more than its headers; JPEG is far smaller. Redis' allocator
# takes up to a quarter more: its sizes are four to a doubling.
BYTES_PER_PIXEL = 3 * 5 / 4
# The record of an image, its events and its headers.
BYTES_PER_IMAGE = 4096


class UnusableImages(SynerDiffError):
    """An image store that cannot work as it is set: no such directory or bucket, or no right to write there."""


class ImageStore(Protocol):
    """The files of images, by job and index. Calls may be repeated, and raise Unavailable where they should be."""

    def redis_bytes(self, request: ImageRequest) -> int:
        """At most how many bytes the results of a request will take in Redis."""

    async def put(self, job_id: str, image: images_pb2.Image) -> images_pb2.Image:
        """Keep the file in `image.data` for good. Returns the image as Redis is to keep it."""

    async def get(self, job_id: str, record: images_pb2.Image) -> images_pb2.Image | None:
        """The image of a record with its bytes; None where they are not kept any more."""

    async def delete(self, job_id: str) -> None:
        """Drop all files of a job, some of which may be gone."""

    def jobs(self, min_age_s: float) -> AsyncIterator[set[str]]:
        """The ids of jobs that have files this old, in parts."""

    async def check(self) -> None:
        """Raise UnusableImages where files cannot be kept, read back and dropped, and no waiting will help."""

    def close(self) -> None:
        """Let go of what it holds."""


def is_elsewhere(record: images_pb2.Image) -> bool:
    """Whether the bytes of an image are not in its record."""
    return record.size_bytes > 0 and not record.data


class RedisImages:
    """Files are in their records, which the store's scripts write and Redis expires."""

    def redis_bytes(self, request: ImageRequest) -> int:  # noqa: D102
        return request.num_images * (round(BYTES_PER_PIXEL * request.width * request.height) + BYTES_PER_IMAGE)

    async def put(self, job_id: str, image: images_pb2.Image) -> images_pb2.Image:  # noqa: D102
        return image

    async def get(self, job_id: str, record: images_pb2.Image) -> images_pb2.Image:
        """The record. Raises Unavailable for a file that another image store has."""
        if is_elsewhere(record):
            raise Unavailable(
                f"image {record.index} of job {job_id!r} is not in Redis, and this scheduler has no other image store: "
                "another may (images_url)"
            )
        return record

    async def delete(self, job_id: str) -> None:  # noqa: D102
        return

    async def jobs(self, min_age_s: float) -> AsyncIterator[set[str]]:  # noqa: D102
        return
        yield set()

    async def check(self) -> None:  # noqa: D102
        return

    def close(self) -> None:  # noqa: D102
        return
