"""The file of callers: who may call, by the SHA-256 of a key or by the name in a client's certificate.

A line is `NAME sha256:HEX [OPTION...]` for a key, `NAME certificate [OPTION...]` for a certificate; # begins a comment.
Several lines of one name are several keys of one caller, with the options of each line. Options: `operator`,
`priorities=normal,low`, and bounds by the names of `Quota`, as `open_images=64`. A line `* OPTION...` gives the lines
after it their options. Keys have 256 random bits, so that a plain hash, found in a table, gives nothing away.
"""

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from prometheus_client import Gauge

from services.scheduler.callers import COUNTS, Caller
from synerdiff.errors import SynerDiffError
from synerdiff.requests import Priority
from synerdiff.telemetry import get_logger

# Kubernetes brings a changed Secret to its pods within about a minute; a second more is nothing.
LOOK_AGAIN_AFTER_S = 1.0
MAX_FILE_BYTES = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_RATE = re.compile(r"\d{1,6}(\.\d{1,6})?")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
CERTIFICATE = "certificate"

log = get_logger("callers")
_unreadable = Gauge(
    "synerdiff_callers_file_unreadable", "1 while the file of callers is bad and its last good one is in force"
)


class BadCallersFile(SynerDiffError):
    """A file of callers that is absent or has an invalid line; the message names the line, never a hash."""


@dataclass(frozen=True)
class Callers:
    """The callers of a file, by the hash of each key and by the name in a certificate."""

    by_hash: Mapping[str, Caller] = field(default_factory=dict)
    by_certificate: Mapping[str, Caller] = field(default_factory=dict)

    def with_key(self, key: str) -> Caller | None:
        """The caller with this key; None for an unknown one."""
        return self.by_hash.get(key_hash(key))


class CallersFile:
    """The callers of a file that may change. A bad file leaves its last good version in force, and a gauge shows it."""

    def __init__(self, path: Path) -> None:
        """Raises BadCallersFile."""
        self._path = path
        self._seen = _version(path)
        self._callers = read_callers(path)
        self._look_at_s = time.monotonic() + LOOK_AGAIN_AFTER_S

    def callers(self) -> Callers:
        """The callers, at most LOOK_AGAIN_AFTER_S old."""
        if time.monotonic() >= self._look_at_s:
            self._look_at_s = time.monotonic() + LOOK_AGAIN_AFTER_S
            self._look()
        return self._callers

    def _look(self) -> None:
        try:
            version = _version(self._path)
            if version == self._seen:
                return
            self._callers, self._seen = read_callers(self._path), version
        except BadCallersFile as error:
            _unreadable.set(1)
            log.error("the file of callers is bad: the last good one stays in force", reason=error.message)
        else:
            _unreadable.set(0)
            log.info("the file of callers has changed", keys=len(self._callers.by_hash))


def new_key() -> str:
    """A key that nobody can guess."""
    return "sd-" + secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """A key's form in the file: `sha256:HEX`."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def is_name(name: str) -> bool:
    """Whether a caller may be called so."""
    return bool(_NAME.fullmatch(name))


def read_callers(path: Path) -> Callers:
    """The callers of a file. Raises BadCallersFile."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadCallersFile(f"{path}: more than {MAX_FILE_BYTES} bytes")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadCallersFile(f"{path}: {error}") from error
    by_hash, by_certificate = dict[str, Caller](), dict[str, Caller]()
    usual: list[str] = []
    for number, words in _lines(text):
        try:
            if words[0] == "*":
                usual = words[1:]
                _with_options(Caller(), usual)
                continue
            caller, proof = _caller(words, usual)
            known, by = (by_certificate, caller.name) if proof == CERTIFICATE else (by_hash, proof)
            if by in known:
                raise ValueError("the same key, or the same name's certificate, comes twice")
            known[by] = caller
        except ValueError as error:
            raise BadCallersFile(f"{path}, line {number}: {error}") from error
    return Callers(by_hash, by_certificate)


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.partition("#")[0].split():
            yield number, words


def _caller(words: list[str], usual: list[str]) -> tuple[Caller, str]:
    """The caller of a line, and how that caller is known: a key's hash, or CERTIFICATE. `usual`: options before the
    line's own."""
    name, proof, *options = *words, *[""] * (2 - len(words))
    if not is_name(name):
        raise ValueError(f"{name[:80]!r} is no name: 1 to 64 letters, digits, '.', '_', '@' and '-'")
    if proof != CERTIFICATE and not _HASH.fullmatch(proof):
        raise ValueError(f"the second word is neither {CERTIFICATE!r} nor sha256: with 64 small hex digits")
    return _with_options(Caller(name), [*usual, *options]), proof


def _with_options(caller: Caller, options: list[str]) -> Caller:
    for option in options:
        caller = _with_option(caller, option)
    return caller


def _with_option(caller: Caller, option: str) -> Caller:
    name, _, value = option.partition("=")
    if option == "operator":
        return replace(caller, operator=True)
    if name == "priorities":
        return replace(caller, priorities=frozenset(map(_priority, value.split(","))))
    if name in COUNTS and value.isdecimal() and 0 < int(value) < 2**31:
        return replace(caller, quota=replace(caller.quota, **{name: int(value)}))
    if name == "requests_per_s" and _RATE.fullmatch(value) and float(value) > 0:
        return replace(caller, quota=replace(caller.quota, requests_per_s=float(value)))
    known = ("operator", "priorities=high,normal,low", *(f"{count}=NUMBER" for count in COUNTS), "requests_per_s=RATE")
    raise ValueError(f"{option[:80]!r} is no option; they are: {', '.join(known)}; numbers above 0")


def _priority(name: str) -> Priority:
    try:
        return Priority[name.upper()]
    except KeyError:
        names = ", ".join(priority.name.lower() for priority in Priority)
        raise ValueError(f"priorities: {name[:80]!r} is none of {names}") from None


def _version(path: Path) -> tuple[int, int, int]:
    """Changes with the file. Raises BadCallersFile."""
    try:
        now: os.stat_result = path.stat()
    except OSError as error:
        raise BadCallersFile(f"{path}: {error}") from error
    return now.st_ino, now.st_mtime_ns, now.st_size
