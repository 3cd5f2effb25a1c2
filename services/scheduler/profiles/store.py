"""Measured profiles in Redis, so that a new worker finds its device's: per model a hash, by profile subject."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields

from redis.asyncio import Redis

from synerdiff.errors import FieldViolation, InvalidRequest
from synerdiff.profiles import Profile, ProfileSubject, dump, parse
from synerdiff.telemetry import get_logger

log = get_logger("profile_store")


class ProfileStore:
    """Profiles by their subject. Methods raise redis's own errors."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def put(self, profile: Profile) -> None:
        """Keep a profile for good; it takes the place of an older one of the same subject."""
        await self._redis.hset(_key(profile.subject.model), _field(profile.subject), dump(profile))

    async def get(self, subject: ProfileSubject) -> Profile | None:
        """The profile of exactly this subject. Where there is none but others of its model, the log says why not."""
        text = await self._redis.hget(_key(subject.model), _field(subject))
        if text is None:
            await self._explain(subject)
            return None
        try:
            return usable(parse(text), subject)
        except InvalidRequest as error:
            log.warning("stored profile refused", model=subject.model, reason=error.message)
            return None

    async def _explain(self, subject: ProfileSubject) -> None:
        kept = []
        for text in await self._redis.hvals(_key(subject.model)):
            try:
                kept.append(parse(text))
            except InvalidRequest as error:
                log.warning("stored profile refused", model=subject.model, reason=error.message)
        if kept:
            nearest = min(kept, key=lambda profile: len(differences(profile.subject, subject)))
            reason = "; ".join(differences(nearest.subject, subject))
            log.info("no stored profile fits", model=subject.model, profiles=len(kept), nearest_differs=reason)


def usable(profile: Profile, subject: ProfileSubject) -> Profile:
    """The profile, if it is of `subject`. Raises InvalidRequest naming every difference."""
    differing = differences(profile.subject, subject)
    if differing:
        raise InvalidRequest(FieldViolation("subject", f"the profile is of something else: {'; '.join(differing)}"))
    return profile


def differences(of_profile: ProfileSubject, wanted: ProfileSubject) -> Sequence[str]:
    """A phrase for every field in which a profile's subject is not the one that is wanted."""
    pairs = [(f.name, getattr(of_profile, f.name), getattr(wanted, f.name)) for f in fields(ProfileSubject)]
    return [f"{name} {_shown(found)}, not {_shown(asked)}" for name, found, asked in pairs if found != asked]


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else repr(value)


def _key(model: str) -> str:
    return f"synerdiff:profiles:{model}"


def _field(subject: ProfileSubject) -> str:
    return hashlib.sha256(repr(subject).encode()).hexdigest()[:16]
