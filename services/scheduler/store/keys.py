"""Every Redis key and channel name in one place. The Lua scripts get the same table.

The keys are made for one Redis with replicas, not for Redis Cluster: a script reaches the stream of a job by fields of
the job, and a cluster has to know all keys beforehand.
"""

from synerdiff.registry import MODELS
from synerdiff.requests import Priority

PATTERNS = {
    # A job: its fields, its events but progress, its latest progress by image, its images by index, with their bytes
    # where no other image store has them.
    "job": "synerdiff:job:%s",
    "events": "synerdiff:job:%s:events",
    "progress": "synerdiff:job:%s:progress",
    "images": "synerdiff:job:%s:images",
    # The idempotency key of a client, see `request_id_of`: the id of its job.
    "request": "synerdiff:request:%s",
    # One stream per model and priority class, all read through GROUP, a consumer per pool.
    "queue": "synerdiff:queue:%s:%s",
    "queued_models": "synerdiff:queued_models",
    # The queued jobs of a model in the order they are read (see fair.lua). This and the other sorted sets hold KEEPER
    # besides: Redis has lost a set without it (see restore.lua).
    "waiting": "synerdiff:waiting:%s",
    # Of a model and priority class: the virtual time, and by caller where their last job ends in it.
    "turns": "synerdiff:turns:%s:%s",
    # Counts of each named caller: fields "<caller> <count>" for the names of COUNTS; of all open jobs " result_bytes".
    # Counted again for every new leadership, and where it is lost.
    "callers": "synerdiff:callers",
    # Jobs that have not ended, by deadline; abandonable ones, by the end of their follower's lease. Unix ms.
    "deadlines": "synerdiff:deadlines",
    "leases": "synerdiff:leases",
    "leases_swept": "synerdiff:leases_swept",
    # Stream: the ends of jobs, until a scheduler has logged them: see take_ended.lua.
    "ended": "synerdiff:ended",
    # The cards of the known models by name: the worker registry's.
    "models": MODELS,
    # A pool: its newest fencing token and last renewal; its leader while the TTL lasts; its last answered read.
    "pool": "synerdiff:pool:%s",
    "leader": "synerdiff:pool:%s:leader",
    "last_read": "synerdiff:pool:%s:last_read",
    # Channels: "event", or progress itself, to the followers of a job; job ids to the leader of a pool; the models of
    # accepted jobs to all leaders.
    "wake": "synerdiff:wake:%s",
    "controls": "synerdiff:controls:%s",
    "accepted": "synerdiff:accepted",
}

ACCEPTED = PATTERNS["accepted"]

# Written by every scheduler now and then, to see whether Redis takes writes.
WRITTEN = "synerdiff:written"
# Set by the first scheduler of all, and never again: another value, or none, shows that Redis has lost its data.
DATA_ID = "synerdiff:data_id"

# Held for as long as no other sweep of image files is due.
IMAGES_SWEPT = "synerdiff:images_swept"

GROUP = "pools"
KEEPER = ""  # the member of every sorted set that marks it as whole; ranked last, it precedes no job

PRIORITIES = tuple(priority.name.lower() for priority in sorted(Priority))


def job(job_id: str) -> str:
    """Hash: the fields of a job (see `records.py`)."""
    return PATTERNS["job"] % job_id


def events(job_id: str) -> str:
    """Stream: the events of a job, progress apart. Entry ids are "<sequence>-0"."""
    return PATTERNS["events"] % job_id


def progress(job_id: str) -> str:
    """Hash: image index -> "<sequence>:<event>", the latest progress of each unfinished image."""
    return PATTERNS["progress"] % job_id


def images(job_id: str) -> str:
    """Hash: image index -> serialized Image, with its bytes or without (`images.is_elsewhere`)."""
    return PATTERNS["images"] % job_id


def queue(model: str, priority: Priority) -> str:
    """Stream: the jobs of a model and priority class; field `job` is the job id."""
    return PATTERNS["queue"] % (model, priority.name.lower())


def request_id_of(caller: str, request_id: str) -> str:
    """A request_id among those of all callers. It is printable, so none is that of another caller."""
    return f"{caller}\n{request_id}" if caller and request_id else request_id


def wake(job_id: str) -> str:
    """Channel: wake-ups of a job's followers."""
    return PATTERNS["wake"] % job_id


def controls(pool: str) -> str:
    """Channel: ids of jobs that a pool no longer has to work on."""
    return PATTERNS["controls"] % pool
