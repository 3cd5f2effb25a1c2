"""Where the image files of results are: in Redis beside their records, or in a directory or bucket (`image_bucket.py`).

A file is stored before Redis gets its image's record, so a job's images were all kept. A record without bytes says that
they are elsewhere. Files whose job Redis does not know any more are swept (`sweeps.py`), however they came to be left.
An image depends on its request alone, within rounding, so two leaders may put the same one: the last file stays.
"""

import asyncio
import contextlib
import os
import re
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from prometheus_client import Counter

from synerdiff.errors import SynerDiffError, Unavailable
from synerdiff.requests import ImageRequest
from synerdiff.telemetry import get_logger
from synerdiff.v1 import images_pb2

# No PNG or lossless WebP is larger than its pixels by more than its headers; JPEG is far smaller. Redis' allocator
# takes up to a quarter more: its sizes are four to a doubling.
BYTES_PER_PIXEL = 3 * 5 / 4
# The record of an image, its events and its headers.
BYTES_PER_IMAGE = 4096
_JOB_ID = re.compile(r"[0-9a-f]{32}")
_URL = re.compile(r"(?P<redis>redis)|file://(?P<directory>/.*)|s3://[^/?#]+(/[^?#]*)?")
_PROBE = "synerdiff-probe"
_THREADS = 16

log = get_logger("images")
_errors = Counter("synerdiff_image_store_errors", "calls of the image store that failed", ["operation"])
for _operation in ("put", "get", "delete", "list"):
    _errors.labels(_operation)

T = TypeVar("T")


class UnusableImages(SynerDiffError):
    """An image store that cannot work as it is set: no such directory or bucket, or no right to write there."""


def is_elsewhere(record: images_pb2.Image) -> bool:
    """Whether the bytes of an image are not in its record."""
    return record.size_bytes > 0 and not record.data


class ImageStore:
    """The files of images, by job and index. Calls may be repeated, and raise Unavailable where they should be.

    This store keeps them in their records, which the store's scripts write and Redis expires.
    """

    def redis_bytes(self, request: ImageRequest) -> int:
        """At most how many bytes the results of a request will take in Redis."""
        return request.num_images * (round(BYTES_PER_PIXEL * request.width * request.height) + BYTES_PER_IMAGE)

    async def put(self, job_id: str, image: images_pb2.Image) -> images_pb2.Image:
        """Keep the file in `image.data` for good. Returns the image as Redis is to keep it."""
        return image

    async def get(self, job_id: str, record: images_pb2.Image) -> images_pb2.Image | None:
        """The image of a record with its bytes; None where they are not kept any more."""
        if is_elsewhere(record):
            raise Unavailable(
                f"image {record.index} of job {job_id!r} is not in Redis, and this scheduler has no other image store: "
                "another may (images_url)"
            )
        return record

    async def delete(self, job_id: str) -> None:
        """Drop all files of a job, some of which may be gone."""

    async def jobs(self, min_age_s: float) -> AsyncIterator[set[str]]:
        """The ids of jobs that have files this old, in parts."""
        return
        yield set()

    async def check(self) -> None:
        """Raise UnusableImages where files cannot be kept, read back and dropped, and no waiting will help."""

    def close(self) -> None:
        """Free the store's resources; calls under way end by themselves."""


def first_line(error: Exception) -> str:
    """The first line of an error: libraries print details below it."""
    return str(error).partition("\n")[0]


class FileImages(ImageStore, ABC):
    """Files apart from their records. The methods of subclasses block, and run in the store's own threads."""

    errors: tuple[type[Exception], ...] = (OSError,)  # that a call of the place may raise

    def __init__(self, place: str) -> None:
        self._place = place
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="images")
        self._failed_calls = 0

    def redis_bytes(self, request: ImageRequest) -> int:  # noqa: D102
        return request.num_images * BYTES_PER_IMAGE

    async def put(self, job_id: str, image: images_pb2.Image) -> images_pb2.Image:  # noqa: D102
        await self._run("put", lambda: self._write(job_id, image.index, image.data))
        record = images_pb2.Image()
        record.CopyFrom(image)
        record.ClearField("data")
        return record

    async def get(self, job_id: str, record: images_pb2.Image) -> images_pb2.Image | None:  # noqa: D102
        if not is_elsewhere(record):
            return record
        data = await self._run("get", lambda: self._read(job_id, record.index))
        if data is None:
            return None
        image = images_pb2.Image()
        image.CopyFrom(record)
        image.data, image.size_bytes = data, len(data)
        return image

    async def delete(self, job_id: str) -> None:  # noqa: D102
        await self._run("delete", lambda: self._drop(job_id))

    async def jobs(self, min_age_s: float) -> AsyncIterator[set[str]]:  # noqa: D102
        parts = iter(self._older(time.time() - min_age_s))
        while (part := await self._run("list", lambda: next(parts, None))) is not None:
            yield {job_id for job_id in part if _JOB_ID.fullmatch(job_id)}

    async def check(self) -> None:  # noqa: D102
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._probe)
        except self.errors as error:
            reason = f"{self._place} cannot be used: {first_line(error)}"
            if self._is_final(error):
                raise UnusableImages(f"images_url: {reason}") from error
            log.warning("image store is not there yet", reason=reason)

    def close(self) -> None:  # noqa: D102
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, operation: str, call: Callable[[], T]) -> T:
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except self.errors as error:
            _errors.labels(operation).inc()
            reason = f"the image store {self._place} cannot {operation}: {first_line(error)}"
            if not self._failed_calls:
                log.warning("image store in trouble; calls are tried again", reason=reason)
            self._failed_calls += 1
            raise Unavailable(reason) from error
        if self._failed_calls:
            log.info("image store out of trouble", failed_calls=self._failed_calls)
            self._failed_calls = 0
        return result

    def _probe(self) -> None:
        self._write(_PROBE, 0, b"probe")
        self._read(_PROBE, 0)
        self._drop(_PROBE)

    @abstractmethod
    def _write(self, job_id: str, index: int, data: bytes) -> None:
        """Keep a file; once this returns, it outlives a power cut."""

    @abstractmethod
    def _read(self, job_id: str, index: int) -> bytes | None:
        """A file, or None."""

    @abstractmethod
    def _drop(self, job_id: str) -> None:
        """Delete all files of a job."""

    @abstractmethod
    def _older(self, than_unix_s: float) -> Iterable[set[str]]:
        """Names of folders with files older than that, in parts; some may belong to no job."""

    @abstractmethod
    def _is_final(self, error: Exception) -> bool:
        """Whether an error stays until an operator acts."""


class DirectoryImages(FileImages):
    """DIRECTORY/JOB/INDEX, in a directory that all schedulers share. It must exist: a new one would not be shared.
    A file is written beside its name, synced and renamed, so that no reader gets half of it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory))
        self._directory = directory

    def _write(self, job_id: str, index: int, data: bytes) -> None:
        folder = self._directory / job_id
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            _sync(self._directory)
        part = folder / f"{index}.{uuid.uuid4().hex}"
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.rename(folder / str(index))
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync(folder)

    def _read(self, job_id: str, index: int) -> bytes | None:
        try:
            return (self._directory / job_id / str(index)).read_bytes()
        except FileNotFoundError:
            self._directory.stat()  # or it is the directory that is not there
            return None

    def _drop(self, job_id: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._directory / job_id)

    def _older(self, than_unix_s: float) -> Iterable[set[str]]:
        old = set()
        for folder in os.scandir(self._directory):
            with contextlib.suppress(FileNotFoundError):  # another sweep was here first
                if folder.stat().st_mtime <= than_unix_s:
                    old.add(folder.name)
        return [old]

    def _is_final(self, error: Exception) -> bool:
        return isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_images_url(url: str) -> str:
    """`url`, where `open_images` takes it. Raises ValueError."""
    _match(url)
    return url


def open_images(url: str) -> ImageStore:
    """The store that a URL names: redis, file:///DIRECTORY or s3://BUCKET/PREFIX. Raises ValueError, UnusableImages."""
    match = _match(url)
    if match["redis"]:
        return ImageStore()
    if match["directory"]:
        return DirectoryImages(Path(match["directory"]))
    try:
        from services.scheduler.store.image_bucket import S3Images
    except ImportError as error:
        raise UnusableImages(f"images_url: {url} needs obstore: pip install 'synerdiff[s3]' ({error})") from error
    return S3Images(url)


def _match(url: str) -> re.Match[str]:
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(f"{url!r} is none of redis, file:///DIRECTORY and s3://BUCKET/PREFIX")
    return match
