"""An image store in a bucket that speaks S3. Needs obstore, the extra `s3`."""

import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from services.scheduler.store.images import FileImages, UnusableImages, first_line

# Calls are tried once: the store writer and the readers above repeat them.
_CONNECT_TIMEOUT_S, _TIMEOUT_S = 2, 20


class S3Images(FileImages):
    """s3://BUCKET/PREFIX/JOB/INDEX. Keys, region and endpoint are the environment's, in AWS_* variables. Blocking calls
    in threads of ours: obstore's own coroutines may end while Python does, and then abort the process."""

    errors = (BaseError, OSError)

    def __init__(self, url: str) -> None:
        super().__init__(url)
        try:
            self._store = S3Store.from_url(
                url,
                client_options={
                    "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT_S),
                    "timeout": timedelta(seconds=_TIMEOUT_S),
                    "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true"),
                },
                retry_config={"max_retries": 0},
            )
        except (BaseError, ValueError) as error:
            raise UnusableImages(f"images_url: {url}: {first_line(error)}") from error

    def _write(self, job_id: str, index: int, data: bytes) -> None:
        obstore.put(self._store, f"{job_id}/{index}", data, use_multipart=False)

    def _read(self, job_id: str, index: int) -> bytes | None:
        try:
            return obstore.get(self._store, f"{job_id}/{index}").bytes().to_bytes()
        except FileNotFoundError:
            return None

    def _drop(self, job_id: str) -> None:
        paths = [file["path"] for file in obstore.list(self._store, prefix=job_id).collect()]
        if paths:
            with suppress(FileNotFoundError):
                obstore.delete(self._store, paths)

    def _older(self, than_unix_s: float) -> Iterable[set[str]]:
        than = datetime.fromtimestamp(than_unix_s, UTC)
        for files in obstore.list(self._store, chunk_size=1000):
            yield {file["path"].partition("/")[0] for file in files if file["last_modified"] <= than}

    def _is_final(self, error: Exception) -> bool:
        return isinstance(error, FileNotFoundError | PermissionDeniedError | UnauthenticatedError)
