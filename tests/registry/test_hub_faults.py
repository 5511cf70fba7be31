"""The local hub fails as it is told, and no more often."""

import http.client
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.conftest import eventually
from tests.hub import Fault, LocalHub
from tests.registry.asking import WEIGHTS, WEIGHTS_PATH, download, get, head, make_folder, measure, weights_url


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model", WEIGHTS)


def test_a_branch_moves_between_its_description_and_its_files(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    old = hub.add_repo("org/name", folder)
    newer = make_folder(tmp_path / "newer", b"newer")
    hub.faults.add(Fault(kind="api", path="/api/models/org/name", then=lambda: hub.commit("org/name", newer)))
    api = HfApi(endpoint=hub.url, token=False)
    assert api.model_info("org/name").sha == old
    assert download(hub, tmp_path, WEIGHTS_PATH) == b"newer"
    assert api.model_info("org/name").sha != old


def test_a_cut_download_goes_on_from_the_bytes_that_the_client_kept(
    hub: LocalHub, folder: Path, tmp_path: Path
) -> None:
    weights = os.urandom(12 * 2**20)
    hub.add_repo("org/name", make_folder(folder, weights))
    hub.faults.add(Fault(kind="cdn", cut_after_bytes=11 * 2**20))
    assert download(hub, tmp_path, WEIGHTS_PATH) == weights
    first, second = hub.requests.matching("cdn")
    assert (first.range, first.status, first.sent_bytes) == (None, 200, 11 * 2**20)
    # The client writes pieces of ten, and loses the rest of a piece.
    assert (second.range, second.status, second.sent_bytes) == (f"bytes={10 * 2**20}-", 206, 2 * 2**20)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(status=401, error_code="RepoNotFound"), RepositoryNotFoundError),
        (Fault(status=403, error_code="GatedRepo"), GatedRepoError),
        (Fault(status=403), HfHubHTTPError),
        (Fault(status=404, error_code="RevisionNotFound"), RevisionNotFoundError),
        (Fault(status=429, retry_after_seconds=7), HfHubHTTPError),
        (Fault(status=500), HfHubHTTPError),
        (Fault(status=503), HfHubHTTPError),
    ],
)
def test_a_failure_asked_for_is_the_client_s_exception(
    hub: LocalHub, folder: Path, fault: Fault, error: type[HfHubHTTPError]
) -> None:
    hub.add_repo("org/name", folder)
    hub.faults.add(fault)
    api = HfApi(endpoint=hub.url, token=False)
    with pytest.raises(HfHubHTTPError) as refused:
        api.model_info("org/name")
    assert type(refused.value) is error
    assert refused.value.response.status_code == fault.status
    assert refused.value.response.headers.get("Retry-After") == ("7" if fault.status == 429 else None)
    assert api.model_info("org/name").id == "org/name"
    assert fault.applied == 1


def test_the_client_waits_as_it_is_told_and_tries_again(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    hub.add_repo("org/name", folder)
    hub.faults.add(Fault(kind="cdn", status=429, retry_after_seconds=1))
    took, content = measure(lambda: download(hub, tmp_path, WEIGHTS_PATH))
    assert content == WEIGHTS
    assert [request.status for request in hub.requests.matching("cdn")] == [429, 200]
    # The client adds a second; untold it waits for one.
    assert took >= 2


def test_faults_come_in_order_to_the_requests_they_are_for(hub: LocalHub, folder: Path) -> None:
    hub.add_repo("org/name", folder)
    hub.faults.add(Fault(kind="resolve", path="*/config.json", method="GET", skip=1, times=2, status=500))
    hub.faults.add(Fault(kind="resolve", path="*/config.json", times=None, status=503))
    url = f"{hub.url}/org/name/resolve/main"
    assert [head(f"{url}/config.json"), head(f"{url}/config.json")] == [503, 503]
    assert [get(f"{url}/config.json")[0] for _ in range(5)] == [503, 500, 500, 503, 503]
    assert get(f"{url}/empty.txt")[0] == 200
    hub.faults.clear()
    hub.requests.clear()
    assert get(f"{url}/config.json")[0] == 200
    assert [request.path for request in hub.requests] == ["/org/name/resolve/main/config.json"]


def test_a_fault_of_the_body_waits_for_one_that_is_long_enough(hub: LocalHub, folder: Path) -> None:
    hub.add_repo("org/name", folder)
    cut = hub.faults.add(Fault(kind="resolve", cut_after_bytes=5))
    longer = hub.faults.add(Fault(kind="resolve", length_off_by=1))
    url = f"{hub.url}/org/name/resolve/main"
    assert [head(f"{url}/config.json"), get(f"{url}/empty.txt")[0]] == [200, 200]
    assert (cut.applied, longer.applied) == (0, 0)
    assert get(f"{url}/config.json")[2] == b"hello"
    assert (cut.applied, longer.applied) == (1, 0)


def test_a_wrong_byte_waits_for_the_range_that_holds_it(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    hub.add_repo("org/name", folder)
    wrong = bytearray(WEIGHTS)
    wrong[5000] ^= 0xFF
    fault = hub.faults.add(Fault(kind="cdn", flip_at_byte=5000))
    assert get(weights_url(hub), "bytes=0-4999")[2] == WEIGHTS[:5000]
    assert fault.applied == 0
    # Nothing in the client notices.
    assert download(hub, tmp_path, WEIGHTS_PATH) == wrong
    assert get(weights_url(hub), "bytes=5000-5000")[2] == WEIGHTS[5000:5001]


def test_a_length_that_is_too_great_ends_the_connection_early(hub: LocalHub, folder: Path) -> None:
    hub.add_repo("org/name", folder)
    hub.faults.add(Fault(kind="cdn", length_off_by=10))
    _, headers, body = get(weights_url(hub))
    assert (headers["Content-Length"], body) == ("100010", WEIGHTS)


def test_a_length_that_is_too_small_is_a_short_file(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    hub.add_repo("org/name", folder)
    hub.faults.add(Fault(kind="cdn", length_off_by=-10))
    with pytest.raises(OSError, match=r"should be of size 100000 but has size 99990"):
        download(hub, tmp_path, WEIGHTS_PATH)
    assert hub.requests.sent_bytes("cdn") == 99_990


def test_a_cut_after_nothing_is_no_reply_at_all(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    hub.add_repo("org/name", folder)
    hub.faults.add(Fault(kind="resolve", method="HEAD", times=1, cut_after_bytes=0))
    with pytest.raises(http.client.RemoteDisconnected):
        head(f"{hub.url}/org/name/resolve/main/config.json")
    (request,) = hub.requests
    assert (request.method, request.status) == ("HEAD", None)
    assert head(f"{hub.url}/org/name/resolve/main/config.json") == 200


def test_a_stalled_reply_goes_on_when_it_is_released(hub: LocalHub, folder: Path) -> None:
    hub.add_repo("org/name", folder)
    fault = hub.faults.add(Fault(kind="cdn", stall_after_bytes=1000))
    with ThreadPoolExecutor(1) as threads:
        reply = threads.submit(get, weights_url(hub))
        eventually(lambda: hub.requests.sent_bytes("cdn") == 1000)
        # Only this connection is held.
        assert get(weights_url(hub))[2] == WEIGHTS
        assert hub.requests.matching("cdn")[0].sent_bytes == 1000
        assert not reply.done()
        fault.release()
        assert reply.result(timeout=20)[2] == WEIGHTS


@pytest.mark.parametrize("stalled_bytes", [0, 1000])
def test_a_stall_lasts_as_long_as_it_is_said_to(hub: LocalHub, folder: Path, stalled_bytes: int) -> None:
    hub.add_repo("org/name", folder)
    hub.faults.add(Fault(kind="cdn", stall_after_bytes=stalled_bytes, stall_seconds=0.3))
    took, (status, _, body) = measure(lambda: get(weights_url(hub)))
    assert (status, body) == (200, WEIGHTS)
    assert took >= 0.3


def test_a_slow_reply_is_no_faster_than_its_rate(hub: LocalHub, folder: Path) -> None:
    hub.add_repo("org/name", folder)
    hub.bytes_per_second = 200_000
    hub.faults.add(Fault(kind="cdn", bytes_per_second=10**9))
    fast, _ = measure(lambda: get(weights_url(hub)))
    slow, (_, _, body) = measure(lambda: get(weights_url(hub)))
    assert body == WEIGHTS
    assert slow >= len(WEIGHTS) / 200_000 > fast


def test_the_hub_ends_while_it_holds_connections(folder: Path) -> None:
    before = threading.active_count()
    with ThreadPoolExecutor(2) as threads:
        with LocalHub() as hub:
            hub.add_repo("org/name", folder)
            hub.faults.add(Fault(kind="cdn", stall_after_bytes=1000))
            held = threads.submit(get, weights_url(hub))
            hub.faults.add(Fault(kind="cdn", bytes_per_second=0.01))
            eventually(lambda: hub.requests.sent_bytes("cdn") == 1000)
            slow = threads.submit(get, weights_url(hub))
            eventually(lambda: len(hub.requests.matching("cdn")) == 2)
            idle = http.client.HTTPConnection(str(urlsplit(hub.url).hostname), urlsplit(hub.url).port)
            idle.connect()
            took, _ = measure(hub.close)
        assert took < 3
        held.result(timeout=5)
        slow.result(timeout=5)
        idle.close()
    eventually(lambda: threading.active_count() == before)
