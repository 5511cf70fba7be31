"""What goes wrong on purpose, how often and to which requests; and the log of what was asked."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from fnmatch import fnmatchcase
from typing import Literal
from urllib.parse import parse_qsl

Kind = Literal["api", "resolve", "cdn", "cas"]


@dataclass(eq=False)
class Request:
    """One request as it came, and what came of it.

    `sent_bytes` are those of the body that the kernel took; a client that has read a byte finds it counted. Of a client
    that went away, some of them may never have arrived.
    """

    method: str
    kind: Kind
    path: str
    query_string: str
    headers: Message
    status: int | None = None
    sent_bytes: int = 0

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters."""
        return dict(parse_qsl(self.query_string))

    @property
    def token(self) -> str | None:
        """The token that it was sent with."""
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    @property
    def range(self) -> str | None:
        """The range that it asked for, as it was written."""
        return self.headers.get("Range")


class RequestLog:
    """Every request since the start or the last `clear`, in the order of arrival."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def add(self, request: Request) -> None:
        """Log a request; what comes of it is written into it."""
        self._requests.append(request)

    def clear(self) -> None:
        """Forget all of them."""
        self._requests = []

    def matching(self, kind: Kind | None = None, path: str = "*", method: str | None = None) -> list[Request]:
        """Those of a kind, of a path by pattern, and of a method."""
        return [request for request in self if _matches(request, kind, path, method)]

    def sent_bytes(self, kind: Kind | None = None, path: str = "*") -> int:
        """The bytes of all bodies that were sent in answer to them."""
        return sum(request.sent_bytes for request in self.matching(kind, path))

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests))


@dataclass(kw_only=True, eq=False)
class Fault:
    """What goes wrong, and for which requests.

    Several may be asked for in one. Bytes are counted from the start of a reply's body, unless it says otherwise, and a
    fault waits for a reply that has so many. Zero bytes are no reply at all, not even its headers; only such a fault,
    or one of status, is for a HEAD request as well.

    Args:
        kind: Of these requests only.
        path: A pattern of the URL's path, as in `*.safetensors`.
        method: GET or HEAD only.
        skip: So many requests pass before the first that it is for.
        times: How many replies it spoils; None for every one.
        status: Reply with this status, and no file.
        error_code: With `status`: the hub's word for it, as in `GatedRepo`.
        retry_after_seconds: With `status`: what the client is told to wait.
        cut_after_bytes: End the connection there.
        stall_after_bytes: Hold the connection there, silent.
        stall_seconds: Go on after that long; None waits for `release`, or for the hub's end.
        flip_at_byte: Invert this byte, counted from the start of the file.
        length_off_by: Say that the body is so much longer than it is, and end the connection where it is not; if
            negative, say and send so much less.
        bytes_per_second: Send the body no faster.
        then: Called when the reply is made and before it is sent.
    """

    kind: Kind | None = None
    path: str = "*"
    method: str | None = None
    skip: int = 0
    times: int | None = 1
    status: int | None = None
    error_code: str | None = None
    retry_after_seconds: int | None = None
    cut_after_bytes: int | None = None
    stall_after_bytes: int | None = None
    stall_seconds: float | None = None
    flip_at_byte: int | None = None
    length_off_by: int = 0
    bytes_per_second: float | None = None
    then: Callable[[], object] | None = None
    applied: int = field(default=0, init=False)
    """How often it has been used."""
    _seen: int = field(default=0, init=False)
    _released: threading.Event = field(default_factory=threading.Event, init=False)

    def release(self) -> None:
        """Let the connections that it holds go on, and hold none from now on."""
        self._released.set()

    def hold(self) -> None:
        """Return when a stalled reply may go on."""
        self._released.wait(self.stall_seconds)

    def fits(self, request: Request, span: range) -> bool:
        """Whether it is for this request, whose reply would have these bytes of the file."""
        enough = all(not count or count < len(span) for count in (self.cut_after_bytes, self.stall_after_bytes))
        held = self.flip_at_byte is None or self.flip_at_byte in span
        known = not self.length_off_by or len(span) > 0
        return enough and held and known and _matches(request, self.kind, self.path, self.method)

    def count(self) -> bool:
        """Count a request that it fits; whether that one is to be spoiled."""
        self._seen += 1
        chosen = self._seen > self.skip and self.applied != self.times
        self.applied += chosen
        return chosen


class Faults:
    """Faults in the order in which they were added; a request gets the first that is for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._added: list[Fault] = []
        # What Xet's storage does unless a fault says otherwise.
        self._always = [Fault(kind="cas", times=None, stall_after_bytes=0)]

    def add(self, fault: Fault) -> Fault:
        """Have it happen from now on; the same fault, to be looked at or released later."""
        with self._lock:
            self._added.append(fault)
        return fault

    def clear(self) -> None:
        """Have none happen from now on, and let every held connection go on."""
        with self._lock:
            added, self._added = self._added, []
        for fault in added:
            fault.release()

    def take(self, request: Request, span: range) -> Fault | None:
        """The fault of this request, counted; None if it is to go well."""
        with self._lock:
            fitting = (fault for fault in [*self._added, *self._always] if fault.fits(request, span))
            return next((fault for fault in fitting if fault.count()), None)

    def close(self) -> None:
        """Let every held connection go on, for good."""
        self.clear()
        for fault in self._always:
            fault.release()


def _matches(request: Request, kind: Kind | None, path: str, method: str | None) -> bool:
    return kind in {None, request.kind} and method in {None, request.method} and fnmatchcase(request.path, path)
