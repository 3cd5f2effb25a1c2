"""Images in Redis, in a real directory and in an S3 service (moto's, over HTTP): kept before they are told of, read by
anybody, gone with their job; and stores that are full, forbidden or away."""

import asyncio
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.scheduler.engine.effects import FinishJob, StoreImage
from services.scheduler.engine.events import ImageStored
from services.scheduler.leading.store_writer import StoreWriter
from services.scheduler.store import keys
from services.scheduler.store.image_bucket import S3Images
from services.scheduler.store.images import (
    DirectoryImages,
    ImageStore,
    UnusableImages,
    check_images_url,
    open_images,
)
from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import Lease
from services.scheduler.store.store_base import JobStoreSettings
from synerdiff.errors import NotEnded, NotFound, Unavailable
from synerdiff.jobs import JobState
from synerdiff.redis_process import RedisProcess, free_port
from synerdiff.v1 import images_pb2
from tests.services.scheduler.harness import Heard, the_line_it_ends_with
from tests.services.scheduler.redis_jobs import DIGEST, TIMINGS, a_picture, job_of, new_leader, running_job
from tests.services.scheduler.store.s3_server import BUCKET, S3Server, s3_server
from tests.waiting import until

PICTURE = b"\x89PNG" + bytes(range(256)) * 40
IMPATIENT = JobStoreSettings(api_patience_s=0.3, follower_patience_s=0.3)
FORGETFUL = JobStoreSettings(retention_s=0.5)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server(free_port()) as server:
        yield server


@pytest.fixture
def s3_images(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Images:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return S3Images(f"s3://{BUCKET}/{time.time_ns()}")


@pytest.fixture(params=["redis", "directory", "s3"])
async def images(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ImageStore]:
    made = ImageStore()
    if request.param == "directory":
        made = open_images(f"file://{tmp_path}")
    elif request.param == "s3":
        made = request.getfixturevalue("s3_images")
    await made.check()
    yield made
    made.close()


@pytest.fixture
async def store(redis: Redis, images: ImageStore) -> AsyncIterator[JobStore]:
    job_store = JobStore(redis, IMPATIENT, images)
    yield job_store
    await job_store.close()


async def followed(store: JobStore, job_id: str) -> list[bytes]:
    return [event.image.data async for event in store.follow(job_id) if event.HasField("image")]


async def kept(images: ImageStore) -> set[str]:
    return set().union(*[job_ids async for job_ids in images.jobs(-1.0)])


async def finished_job(store: JobStore, lease: Lease, num_images: int = 1) -> str:
    job_id = await running_job(store, lease, num_images=num_images)
    for index in range(num_images):
        assert await store.store_image(lease, job_id, a_picture(PICTURE + bytes([index])), index, 7)
    assert await store.finish(lease, job_id, TIMINGS)
    return job_id


async def test_every_reader_gets_the_images(store: JobStore, lease: Lease) -> None:
    job_id = await finished_job(store, lease, num_images=2)
    both = [PICTURE + b"\0", PICTURE + b"\1"]
    assert await followed(store, job_id) == both
    assert [image.data for image in await store.images(job_id, 1 << 20)] == both
    first, second = await store.images(job_id, len(PICTURE) + 100)
    assert (first.data, second.data) == (both[0], b"")
    assert (first.size_bytes, second.size_bytes) == (len(PICTURE) + 1,) * 2
    image = await store.image(job_id, 1)
    assert image is not None
    assert (image.data, image.seed, image.flagged) == (both[1], 7, True)


async def test_redis_holds_records_alone_where_images_have_a_place(
    store: JobStore, images: ImageStore, lease: Lease, redis: Redis
) -> None:
    job_id = await finished_job(store, lease)
    in_redis = await redis.hstrlen(keys.images(job_id), "0")
    if type(images) is ImageStore:
        assert in_redis > len(PICTURE)
    else:
        assert in_redis < 100
        assert await kept(images) == {job_id}


async def test_a_deleted_job_is_gone_with_its_images_and_its_request_id(
    store: JobStore, images: ImageStore, lease: Lease, redis: Redis
) -> None:
    running = await running_job(store, lease, request_id="r1")
    await store.store_image(lease, running, a_picture(PICTURE), 0, 7)
    with pytest.raises(NotEnded, match="RUNNING: cancel it"):
        await store.delete(running)
    record = await job_of(store, running)
    await store.finish(lease, running, TIMINGS)
    for _ in range(2):  # its reply was lost
        await store.delete(running)
    assert await store.job(running) is None
    assert await kept(images) == set()
    assert not [key for key in await redis.keys() if running.encode() in key]
    assert (await store.accept(record.request, DIGEST, abandonable=False)).created


async def test_images_go_after_the_retention_of_their_job_and_not_before(
    images: ImageStore, lease: Lease, redis: Redis
) -> None:
    store = JobStore(redis, FORGETFUL, images)
    ended, live = await finished_job(store, lease), await running_job(store, lease)
    await store.store_image(lease, live, a_picture(PICTURE), 0, 7)
    await store.sweep_images(every_s=0.001)
    while await redis.exists(keys.job(ended)):
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.1)  # S3 counts in seconds
    await store.sweep_images(every_s=0.001)
    assert await kept(images) == ({live} if type(images) is not ImageStore else set())
    assert [image.data for image in await store.images(live, 1 << 20)] == [PICTURE]
    with pytest.raises(NotFound):
        await followed(store, ended)
    await store.close()


async def test_one_sweep_is_enough_for_all_schedulers(images: ImageStore, redis: Redis) -> None:
    store = JobStore(redis, FORGETFUL, images)
    orphan = images_pb2.Image(index=0, data=PICTURE, size_bytes=len(PICTURE))
    await images.put("0" * 32, orphan)  # by a leader that died before it told Redis
    await asyncio.sleep(1.6)
    swept = [await store.sweep_images(), await store.sweep_images()]
    assert swept == [0 if type(images) is ImageStore else 1, 0]
    assert await kept(images) == set()


async def test_what_is_not_of_a_job_is_left_alone(tmp_path: Path, redis: Redis) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    store = JobStore(redis, FORGETFUL, DirectoryImages(tmp_path))
    await asyncio.sleep(0.6)
    assert await store.sweep_images() == 0
    assert set(os.listdir(tmp_path)) == {"lost+found", "notes.txt"}


async def test_a_job_whose_image_files_are_gone_says_so(tmp_path: Path, redis: Redis, lease: Lease) -> None:
    images = DirectoryImages(tmp_path)
    store = JobStore(redis, JobStoreSettings(), images)
    job_id = await finished_job(store, lease)
    await images.delete(job_id)
    with pytest.raises(NotFound, match="are not kept any more"):
        await followed(store, job_id)
    with pytest.raises(NotFound, match=f"the file of image 0 of job '{job_id}' is not kept any more"):
        await store.image(job_id, 0)
    (image,) = await store.images(job_id, 1 << 20)
    assert (image.data, image.size_bytes) == (b"", len(PICTURE) + 1)
    await store.close()


async def test_images_that_another_store_has_are_unavailable_here(tmp_path: Path, redis: Redis, lease: Lease) -> None:
    """As while a rollout changes `images_url`: a scheduler of the other setting has them."""
    before, after = JobStore(redis, IMPATIENT, ImageStore()), JobStore(redis, IMPATIENT, DirectoryImages(tmp_path))
    old, new = await finished_job(before, lease), await finished_job(after, await new_leader(redis, instance_id="two"))
    assert await followed(after, old) == [PICTURE + b"\0"]
    with pytest.raises(Unavailable, match="not in Redis, and this scheduler has no other image store"):
        await before.image(new, 0)
    for store in (before, after):
        await store.close()


async def test_half_a_file_is_never_read_and_goes_with_its_job(tmp_path: Path) -> None:
    images, job_id = DirectoryImages(tmp_path), "a" * 32
    await images.put(job_id, images_pb2.Image(index=0, data=PICTURE, size_bytes=len(PICTURE)))
    (tmp_path / job_id / f"0.{'b' * 32}").write_bytes(PICTURE[:7])  # its writer was killed
    image = await images.get(job_id, images_pb2.Image(index=0, size_bytes=len(PICTURE)))
    assert image is not None
    assert image.data == PICTURE
    await images.delete(job_id)
    assert os.listdir(tmp_path) == []


# ---- stores in trouble


@contextlib.contextmanager
def full_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        mounting = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]
        if subprocess.run(mounting, check=False, capture_output=True).returncode:
            pytest.skip("mounting is not permitted here")
        try:
            (Path(place) / "in the way").write_bytes(bytes(60 * 1024))
            yield Path(place)
        finally:
            subprocess.run(["umount", place], check=True)


async def stored_once_it_is_well(
    redis: Redis, lease: Lease, images: ImageStore, reason: str, heal: "contextlib.ExitStack"
) -> None:
    """The job does not end before its image is kept, one line tells of the trouble and one of its end."""
    store, heard = JobStore(redis, IMPATIENT, images), Heard()
    job_id = await running_job(store, lease)
    writer = StoreWriter(store, lease, heard)
    with capture_logs() as lines:
        writer.submit(StoreImage(job_id, 0, 7, a_picture(PICTURE)))
        writer.submit(FinishJob(job_id, 0, TIMINGS, ()))
        await until(lambda: getattr(images, "_failed_calls") >= 2)  # noqa: B009
        record = await job_of(store, job_id)
        assert (record.state, record.images_done) == (JobState.RUNNING, ())
        heal.close()
        await until(lambda: writer.backlog == 0)
    of_the_store = [line for line in lines if line["event"].startswith("image store")]
    assert [line["log_level"] for line in of_the_store] == ["warning", "info"]
    assert reason in of_the_store[0]["reason"]
    assert heard.events == [ImageStored(f"{job_id}/0")]
    assert await followed(store, job_id) == [PICTURE]
    await store.close()


async def test_a_full_disk_is_waited_for(redis: Redis, lease: Lease) -> None:
    with full_disk() as place, contextlib.ExitStack() as heal:
        heal.callback((place / "in the way").unlink)
        await stored_once_it_is_well(redis, lease, DirectoryImages(place), "No space left on device", heal)
        (folder,) = place.iterdir()
        assert [path.name for path in folder.iterdir()] == ["0"], "no half file is left"


@contextlib.contextmanager
def forbidden(place: Path) -> Iterator[None]:
    """Nobody may write there; root, whom nothing is forbidden, is somebody else meanwhile."""
    user = os.geteuid()
    place.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        place.chmod(0o755)


async def test_a_forbidden_directory_is_waited_for_by_writers_and_told_at_the_start(redis: Redis, lease: Lease) -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as heal:
        images = DirectoryImages(Path(name))
        heal.enter_context(forbidden(Path(name)))
        with pytest.raises(UnusableImages, match="Permission denied"):
            await images.check()
        images = DirectoryImages(Path(name))
        await stored_once_it_is_well(redis, lease, images, "Permission denied", heal)


async def test_an_s3_service_that_is_away_is_waited_for(
    redis: Redis, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(free_port()) as server, contextlib.ExitStack() as heal:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        images = S3Images(f"s3://{BUCKET}")
        store = JobStore(redis, IMPATIENT, images)
        job_id = await finished_job(store, lease)
        server.stop()
        heal.callback(server.start)
        reads = (store.image(job_id, 0), store.images(job_id, 1 << 20), followed(store, job_id))
        for read in reads:
            with pytest.raises(Unavailable, match="the image store s3://pictures cannot get"):
                await read
        await S3Images(f"s3://{BUCKET}").check()  # one that is away may come back: no reason not to start
        assert (await store.images(job_id, 0))[0].size_bytes == len(PICTURE) + 1, "its record can be read"
        fresh = S3Images(f"s3://{BUCKET}")
        other = await new_leader(redis, instance_id="two")
        await stored_once_it_is_well(redis, other, fresh, "the image store s3://pictures cannot put", heal)
        await store.close()


async def test_stores_that_cannot_work_are_told_at_the_start(
    s3_images: S3Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnusableImages, match="no-such-bucket"):
        await open_images("s3://no-such-bucket/prefix").check()
    with pytest.raises(UnusableImages, match="No such file or directory"):
        await open_images(f"file://{tmp_path}/missing").check()
    assert not (tmp_path / "missing").exists(), "what is not mounted is not made"


async def test_a_scheduler_without_its_store_ends_with_one_line(redis_server: RedisProcess, tmp_path: Path) -> None:
    said = await the_line_it_ends_with(
        "--redis-url", redis_server.url, "--images-url", f"file://{tmp_path}/not-mounted"
    )
    assert b"not-mounted cannot be used: [Errno 2]" in said


@pytest.mark.parametrize("url", ["", "Redis", "file://relative", "file:/x", "s3://", "s3://bucket?x=1", "gs://bucket"])
def test_urls_that_name_no_store(url: str) -> None:
    with pytest.raises(ValueError, match="is none of redis, file:///DIRECTORY and s3://BUCKET/PREFIX"):
        check_images_url(url)
