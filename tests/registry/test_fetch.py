"""One file: whatever its sources do, it is there and proven in the end, or there is an error with its cause."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bitinglip.domain.models import ModelFile
from bitinglip.errors import (
    DownloadStoppedError,
    HubNotFoundError,
    HubUnreachableError,
    ModelDamagedError,
)
from bitinglip.registry.hub.client import Hub
from bitinglip.registry.transfer.fetch import MAX_DAMAGED_FILES, MAX_FUTILE_ROUNDS, FileFetcher
from bitinglip.registry.transfer.inflow import AHEAD_BYTES
from bitinglip.registry.transfer.source import FileSource
from bitinglip.registry.transfer.throttle import Throttle
from tests.conftest import eventually
from tests.hub import Fault, LocalHub
from tests.registry.sources import FolderSource

PATH = "model.safetensors"
CONTENT = os.urandom(3_000_000)
FILE = ModelFile(PATH, len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
STALL_SECONDS = 0.6


@dataclass
class Fetch:
    """One file's fetch, into a folder of its own."""

    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    positions: list[int] = field(default_factory=list)
    throttle: Throttle = field(default_factory=lambda: Throttle(None))

    @property
    def part(self) -> Path:
        return self.folder / f"{FILE.digest}.part"

    @property
    def blob(self) -> Path:
        return self.folder / FILE.digest

    def run(self, *sources: FileSource, file: ModelFile = FILE) -> bytes:
        fetcher = FileFetcher(
            "org/name",
            sources,
            throttle=self.throttle,
            stall_seconds=STALL_SECONDS,
            stop=self.stop,
            pause_seconds=0.01,
        )
        fetcher.fetch(file, part=self.part, blob=self.blob, on_position=self.positions.append)
        assert not self.part.exists()
        return self.blob.read_bytes()

    def begin(self, content: bytes) -> None:
        self.folder.mkdir(parents=True)
        self.part.write_bytes(content)


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    return Fetch(tmp_path / "blobs")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is served."""
    made = tmp_path / "served"
    made.mkdir()
    (made / PATH).write_bytes(CONTENT)
    return made


@pytest.fixture
def hub(folder: Path) -> Iterator[LocalHub]:
    with LocalHub() as started:
        started.add_repo("org/name", folder)
        yield started


@pytest.fixture
def source(hub: LocalHub, folder: Path) -> FileSource:
    commit = hub.commit("org/name", folder)
    return Hub(endpoint=hub.url, stall_seconds=STALL_SECONDS).make_source("org/name", commit)


def list_ranges(hub: LocalHub) -> list[str | None]:
    return [request.range for request in hub.requests.matching("cdn")]


def test_a_file_is_fetched_whole(fetch: Fetch, source: FileSource) -> None:
    assert fetch.run(source) == CONTENT
    assert fetch.positions == sorted(fetch.positions)
    assert fetch.positions[-1] == FILE.size


def test_an_empty_file_asks_nobody(fetch: Fetch, folder: Path) -> None:
    file = ModelFile("empty.txt", 0, git_sha1="e69de29bb2d1d6434b8b29ae775ad8c2e48c5391")
    never = FolderSource(folder)
    assert fetch.run(never, file=file) == b""
    assert never.opened == []


def test_a_cut_connection_goes_on_from_its_last_byte(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    hub.faults.add(Fault(kind="cdn", cut_after_bytes=1_000_000))
    assert fetch.run(source) == CONTENT
    assert list_ranges(hub) == [None, "bytes=1000000-"]
    assert hub.requests.sent_bytes("cdn") == FILE.size


def test_a_connection_cut_again_and_again_gets_through(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    hub.faults.add(Fault(kind="cdn", cut_after_bytes=200_000, times=None))
    assert fetch.run(source) == CONTENT
    assert hub.requests.sent_bytes("cdn") == FILE.size


def test_a_stall_ends_in_a_new_connection(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    hub.faults.add(Fault(kind="cdn", stall_after_bytes=1_000_000))
    began = time.monotonic()
    assert fetch.run(source) == CONTENT
    assert STALL_SECONDS <= time.monotonic() - began < STALL_SECONDS + 1
    assert list_ranges(hub)[-1] == "bytes=1000000-"


def test_a_source_that_hangs_in_its_own_code_is_left_behind(fetch: Fetch, folder: Path, source: FileSource) -> None:
    released = threading.Event()
    hanging = FolderSource(folder, before_chunk=lambda byte: released.wait() if byte else None)
    try:
        assert fetch.run(hanging, source) == CONTENT
    finally:
        released.set()


def test_a_server_that_is_silent_for_ever_is_an_error(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    hub.faults.add(Fault(kind="cdn", stall_after_bytes=0, times=None))
    with pytest.raises(HubUnreachableError):
        fetch.run(source)
    assert len(list_ranges(hub)) == MAX_FUTILE_ROUNDS


def test_a_hub_that_is_away_is_an_error(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    hub.close()
    with pytest.raises(HubUnreachableError):
        fetch.run(source)


def test_a_file_that_the_hub_does_not_have_is_an_error_at_once(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    other = ModelFile("other.safetensors", 10, sha256="0" * 64)
    with pytest.raises(HubNotFoundError):
        fetch.run(source, file=other)
    assert len(hub.requests.matching("resolve")) == 1


def test_flipped_bytes_have_the_file_fetched_anew(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    hub.faults.add(Fault(kind="cdn", flip_at_byte=2_999_999))
    assert fetch.run(source) == CONTENT
    assert list_ranges(hub) == [None, None]
    assert 0 in fetch.positions


def test_bytes_that_are_always_wrong_are_an_error_and_leave_nothing(
    fetch: Fetch, hub: LocalHub, source: FileSource
) -> None:
    hub.faults.add(Fault(kind="cdn", flip_at_byte=5, times=None))
    with pytest.raises(ModelDamagedError, match=FILE.digest):
        fetch.run(source)
    assert len(list_ranges(hub)) == MAX_DAMAGED_FILES
    assert list(fetch.folder.iterdir()) == []


@pytest.mark.parametrize("length_off_by", [-5_000, 5_000])
def test_a_wrong_length_does_no_harm(fetch: Fetch, hub: LocalHub, source: FileSource, length_off_by: int) -> None:
    hub.faults.add(Fault(kind="cdn", length_off_by=length_off_by))
    assert fetch.run(source) == CONTENT


def test_more_bytes_than_the_file_has_are_dropped(fetch: Fetch, folder: Path) -> None:
    assert fetch.run(FolderSource(folder, surplus=b"more" * 100_000)) == CONTENT


def test_what_was_there_is_not_fetched_again(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    fetch.begin(CONTENT[:2_000_000])
    assert fetch.run(source) == CONTENT
    assert list_ranges(hub) == ["bytes=2000000-"]


def test_what_was_all_there_is_not_asked_for(fetch: Fetch, folder: Path) -> None:
    fetch.begin(CONTENT)
    assert fetch.run(never := FolderSource(folder)) == CONTENT
    assert never.opened == []


def test_a_part_with_a_wrong_byte_is_fetched_anew(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    fetch.begin(b"x" + CONTENT[1:2_000_000])
    assert fetch.run(source) == CONTENT
    assert list_ranges(hub) == ["bytes=2000000-", None]


def test_a_part_with_a_wrong_byte_is_not_held_against_a_peer(fetch: Fetch, folder: Path, source: FileSource) -> None:
    fetch.begin(b"x" + CONTENT[1:2_000_000])
    peer = FolderSource(folder)
    assert fetch.run(peer, source) == CONTENT
    assert peer.opened == [2_000_000, 0]


def test_a_part_that_is_too_long_is_deleted(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    fetch.begin(CONTENT + b"x")
    assert fetch.run(source) == CONTENT
    assert list_ranges(hub) == [None]


def test_a_link_in_a_part_s_place_leads_nowhere(fetch: Fetch, source: FileSource, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    fetch.folder.mkdir()
    fetch.part.symlink_to(tmp_path / "precious")
    assert fetch.run(source) == CONTENT
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_source_without_ranges_is_used_all_the_same(fetch: Fetch, folder: Path) -> None:
    fetch.begin(CONTENT[:1_234_567])
    repeating = FolderSource(folder, knows_ranges=False)
    assert fetch.run(repeating) == CONTENT
    assert repeating.opened == [1_234_567]


def test_a_source_without_ranges_is_not_silent_while_it_repeats(fetch: Fetch, folder: Path) -> None:
    fetch.begin(CONTENT[:2_900_000])
    pace = threading.Event()
    slow = FolderSource(folder, knows_ranges=False, before_chunk=lambda _: pace.wait(STALL_SECONDS / 30))
    assert fetch.run(slow) == CONTENT
    assert slow.opened == [2_900_000]


def test_a_source_that_begins_too_late_is_not_believed(fetch: Fetch, folder: Path, source: FileSource) -> None:
    class Late(FolderSource):
        def open(self, file: ModelFile, start: int):  # type: ignore[no-untyped-def]
            return super().open(file, start + 1)

    assert fetch.run(Late(folder), source) == CONTENT
    assert 0 not in fetch.positions


def test_a_peer_that_gives_wrong_bytes_is_asked_once(fetch: Fetch, source: FileSource, tmp_path: Path) -> None:
    lying = tmp_path / "lying"
    lying.mkdir()
    (lying / PATH).write_bytes(os.urandom(FILE.size))
    peer = FolderSource(lying)
    assert fetch.run(peer, source) == CONTENT
    assert peer.opened == [0]


def test_what_a_peer_has_sent_before_it_died_is_used(
    fetch: Fetch, hub: LocalHub, folder: Path, source: FileSource
) -> None:
    def die() -> None:
        if len(peer.opened) > 1:
            raise HubUnreachableError("peer", "it is gone")

    peer = FolderSource(folder, gives=500_000, fail=die)
    assert fetch.run(peer, source) == CONTENT
    assert peer.opened == [0, 500_000]
    assert list_ranges(hub) == ["bytes=500000-"]


def test_a_peer_that_failed_is_asked_for_no_further_file(fetch: Fetch, folder: Path, source: FileSource) -> None:
    def refuse() -> None:
        raise HubNotFoundError("org/name", "not here")

    peer = FolderSource(folder, fail=refuse)
    fetcher = FileFetcher(
        "org/name", [peer, source], throttle=fetch.throttle, stall_seconds=STALL_SECONDS, stop=fetch.stop
    )
    for number in range(3):
        fetcher.fetch(FILE, part=fetch.part, blob=fetch.folder / str(number), on_position=lambda _: None)
    assert len(peer.opened) == 1


def test_a_busy_hub_is_asked_when_it_said(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    hub.faults.add(Fault(kind="resolve", status=429, retry_after_seconds=1))
    began = time.monotonic()
    assert fetch.run(source) == CONTENT
    assert 1 <= time.monotonic() - began < 3


def test_a_busy_hub_cannot_have_it_wait_for_ever(
    fetch: Fetch, hub: LocalHub, source: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitinglip.registry.transfer.fetch.MAX_PAUSE_SECONDS", 0.1)
    hub.faults.add(Fault(kind="resolve", status=429, retry_after_seconds=600))
    assert fetch.run(source) == CONTENT


def test_a_server_that_fails_once_is_asked_again(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    hub.faults.add(Fault(kind="cdn", status=503))
    assert fetch.run(source) == CONTENT


def measure_stop(fetch: Fetch, is_under_way: Callable[[], object], *sources: FileSource) -> float:
    """Seconds from the word to the end."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(fetch.run, *sources)
        eventually(is_under_way)
        began = time.monotonic()
        fetch.stop.set()
        with pytest.raises(DownloadStoppedError):
            running.result(timeout=5)
        return time.monotonic() - began


@pytest.mark.parametrize("stall_after_bytes", [0, 1_000_000])
def test_a_stop_is_obeyed_while_the_server_is_silent(
    fetch: Fetch, hub: LocalHub, folder: Path, stall_after_bytes: int
) -> None:
    patient = Hub(endpoint=hub.url, stall_seconds=60).make_source("org/name", hub.commit("org/name", folder))
    stalled = hub.faults.add(Fault(kind="cdn", stall_after_bytes=stall_after_bytes, times=None))
    assert measure_stop(fetch, lambda: stalled.applied, patient) < 1
    assert fetch.part.exists()


def test_a_stop_is_obeyed_while_bytes_come(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    hub.bytes_per_second = 500_000
    assert measure_stop(fetch, lambda: fetch.positions, source) < 1


def test_a_stop_is_obeyed_while_the_throttle_holds_bytes_back(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    fetch.throttle = Throttle(1_000)
    assert measure_stop(fetch, lambda: hub.requests.sent_bytes("cdn"), source) < 1


def test_a_stop_is_obeyed_while_it_waits_for_a_busy_hub(fetch: Fetch, hub: LocalHub, source: FileSource) -> None:
    busy = hub.faults.add(Fault(kind="resolve", status=429, retry_after_seconds=600))
    assert measure_stop(fetch, lambda: busy.applied, source) < 1


def test_a_file_comes_no_faster_than_it_may(fetch: Fetch, source: FileSource) -> None:
    fetch.throttle = Throttle(FILE.size)
    began = time.monotonic()
    fetch.run(source)
    assert time.monotonic() - began >= 0.7


def test_nothing_is_written_after_a_stop(fetch: Fetch, folder: Path) -> None:
    """The thread that reads may be left behind; another process may fetch into the same part by then."""
    released = threading.Event()
    held: list[int] = []

    def hold(byte: int) -> None:
        if byte >= 1_000_000:
            held.append(byte)
            released.wait()

    source = FolderSource(folder, before_chunk=hold)
    measure_stop(fetch, lambda: fetch.positions and fetch.positions[-1] >= 1_000_000, source)
    size = fetch.part.stat().st_size
    released.set()
    eventually(lambda: not any(thread.name == f"fetch-{PATH}" for thread in threading.enumerate()))
    assert fetch.part.stat().st_size == size
    assert held == [1_000_000]


def test_no_more_is_read_ahead_than_may_be_lost(fetch: Fetch, folder: Path) -> None:
    content = os.urandom(20_000_000)
    (folder / PATH).write_bytes(content)
    file = ModelFile(PATH, len(content), sha256=hashlib.sha256(content).hexdigest())
    asked: list[int] = []
    source = FolderSource(folder, before_chunk=asked.append)
    held = threading.Event()
    ahead: list[int] = []

    class Slow(Throttle):
        def take(self, count: int, stop: threading.Event) -> None:
            if not held.is_set():
                held.set()
                eventually(lambda: len(asked) > AHEAD_BYTES // 50_000)
                stop.wait(0.3)
                ahead.append(asked[-1])

    fetch.throttle = Slow(None)
    fetch.run(source, file=file)
    assert AHEAD_BYTES <= ahead[0] <= 2 * AHEAD_BYTES + 100_000


def test_errors_of_a_source_s_own_code_come_through(fetch: Fetch, folder: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fetch.run(FolderSource(folder, fail=fail))
