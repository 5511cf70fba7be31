"""The `download` kind: each request is one model that is brought to this node, in a thread of its own.

The engine thread only passes on what those threads say: a step waits for at most `_IDLE_SECONDS` for news. So a pool
that downloads is best given no other kinds: their steps would wait as well.

Invariant: a request that is cancelled has ended `STOP_SECONDS` later, even where its thread still waits for a network
that does not answer; what that thread does afterwards concerns nobody.
"""

import threading
import time
from dataclasses import dataclass, field

from pydantic import ValidationError

from bitinglip.domain.payloads import DownloadPayload
from bitinglip.domain.task import describe_first_error
from bitinglip.engine.base import (
    EngineConfig,
    EngineEvent,
    EngineRequest,
    Failed,
    Finished,
    JsonObject,
    Progress,
    Usage,
)
from bitinglip.errors import BitingLipError, DownloadStoppedError, ServerUnreachableError
from bitinglip.registry.downloader import ModelDownloader, make_downloader
from bitinglip.registry.transfer.progress import DownloadProgress
from bitinglip.settings import ServerSettings, find_node_name, load_settings
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry
from bitinglip.telemetry import get_logger

STOP_SECONDS = 0.9
"""From a cancel to the request's end, at most: a user waits for it."""

PROGRESS_SECONDS = 0.25
"""From one progress event of a request to its next."""

CLOSE_SECONDS = 1.0
"""How long closing the engine waits for its threads."""

_IDLE_SECONDS = 0.05
_CONNECTIONS = 4

log = get_logger()


def load(_config: EngineConfig) -> "DownloadEngine":
    """Make a download engine for this node, with connections of its own to the configured database.

    Raises:
        SystemNotRunningError: If no database is configured and no embedded system runs.
        ConfigurationError: If a setting is wrong.
    """
    urls = load_settings(ServerSettings).find_urls()
    database = Database(urls.database_url, connections=_CONNECTIONS, name="bitinglip-download")
    return DownloadEngine(make_downloader(database), database, node=find_node_name())


@dataclass(slots=True)
class _Download:
    """One request.

    Attributes:
        progress: What its thread said since it was told on, at `told_at`.
        outcome: What its thread ended with.
    """

    request_id: str
    name: str
    began: float
    stop: threading.Event = field(default_factory=threading.Event)
    cancelled_at: float | None = None
    progress: DownloadProgress | None = None
    told_at: float = 0.0
    outcome: ModelEntry | Exception | None = None


class DownloadEngine:
    """Brings any number of models at once.

    Args:
        downloader: Brings one.
        database: Closed with the engine.
        node: This node's name, for the result.
    """

    def __init__(self, downloader: ModelDownloader, database: Database, *, node: str) -> None:
        self._downloader = downloader
        self._database = database
        self._node = node
        self._news = threading.Event()
        self._closing = threading.Event()
        self._running: dict[str, _Download] = {}
        self._threads: list[threading.Thread] = []
        self._refused: list[Failed] = []

    def add(self, request: EngineRequest) -> None:
        """Begin to bring a model."""
        try:
            name = str(DownloadPayload.model_validate(request.payload).name)
        except ValidationError as exc:
            self._refused.append(Failed(request.id, "invalid_request", str(describe_first_error(exc)), retryable=False))
            return
        download = self._running[request.id] = _Download(request.id, name, time.monotonic())
        thread = threading.Thread(target=self._bring, args=(download,), name=f"download {name}", daemon=True)
        self._threads = [running for running in self._threads if running.is_alive()] + [thread]
        thread.start()

    def cancel(self, request_id: str) -> None:
        """Stop a download; its parts are deleted, files that are whole stay."""
        download = self._running.get(request_id)
        if download is not None and download.cancelled_at is None:
            download.cancelled_at = time.monotonic()
            download.stop.set()

    @property
    def busy(self) -> bool:
        """Whether any model is being brought."""
        return bool(self._running or self._refused)

    @property
    def prefilling(self) -> bool:
        """Never: there is no prompt."""
        return False

    @property
    def memory_bytes(self) -> int:
        """None: a download holds no device memory."""
        return 0

    def step(self) -> list[EngineEvent]:
        """Tell what has come of the downloads since the last step."""
        events = self._gather()
        if not events and self._news.wait(_IDLE_SECONDS):
            events = self._gather()
        return events

    def close(self) -> None:
        """Stop every download; what has come of its files stays, for whoever goes on."""
        self._closing.set()
        for download in self._running.values():
            download.stop.set()
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._running.clear()
        self._refused.clear()
        self._database.close()

    def _gather(self) -> list[EngineEvent]:
        self._news.clear()
        events: list[EngineEvent] = [*self._refused]
        self._refused.clear()
        now = time.monotonic()
        for download in list(self._running.values()):
            ended = _find_end(download, now, self._node)
            if ended is not None:
                del self._running[download.request_id]
                events.append(ended)
            elif download.progress is not None and now - download.told_at >= PROGRESS_SECONDS:
                progress, download.progress, download.told_at = download.progress, None, now
                events.append(Progress(download.request_id, progress.fraction, progress.to_json()))
        return events

    def _bring(self, download: _Download) -> None:
        def note(progress: DownloadProgress) -> None:
            download.progress = progress

        try:
            download.outcome = self._downloader.bring(
                download.name, stop=download.stop, on_progress=note, keep_parts=self._closing.is_set
            )
        except Exception as exc:
            if not isinstance(exc, BitingLipError) and not self._closing.is_set():
                log.exception("download_broken", model=download.name)
            download.outcome = exc
        self._news.set()


def _find_end(download: _Download, now: float, node: str) -> Finished | Failed | None:
    """How a download has ended; None if it goes on."""
    usage = Usage(engine_seconds=now - download.began)
    match download.outcome:
        case ModelEntry() as entry:
            return Finished(download.request_id, _describe_result(entry, node), usage)
        case DownloadStoppedError() as stopped:
            return Failed(download.request_id, stopped.code, str(stopped), retryable=False, usage=usage)
        case BitingLipError() as exc:
            # A server that is away now may be back for the next attempt.
            retryable = exc.retryable or isinstance(exc, ServerUnreachableError)
            return Failed(download.request_id, exc.code, str(exc), retryable=retryable, usage=usage)
        case Exception() as exc:
            message = f"the download of {download.name!r} broke off: {type(exc).__name__}: {exc}; see the worker's log"
            return Failed(download.request_id, "internal_error", message, retryable=True, usage=usage)
    if download.cancelled_at is not None and now - download.cancelled_at >= STOP_SECONDS:
        message = str(DownloadStoppedError(download.name))
        return Failed(download.request_id, DownloadStoppedError.code, message, retryable=False, usage=usage)
    return None


def _describe_result(entry: ModelEntry, node: str) -> JsonObject:
    manifest = entry.record.manifest
    return {
        "model": entry.name,
        "commit": manifest.commit if manifest else None,
        "bytes": manifest.total_bytes if manifest else 0,
        "files": len(manifest.files) if manifest else 0,
        "node": node,
    }
