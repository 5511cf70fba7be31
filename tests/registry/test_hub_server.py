"""The local hub is a hub to the real client, and fails as it is told."""

import hashlib
import http.client
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from tests.conftest import REPOSITORY, eventually
from tests.hub import LocalHub
from tests.registry.asking import (
    WEIGHTS,
    WEIGHTS_PATH,
    Token,
    download,
    get,
    make_folder,
    measure,
    read_folder,
    weights_url,
)

READER, STRANGER = "hf_reader", "hf_stranger"


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub(tokens=[STRANGER]) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model", WEIGHTS)


def test_the_client_reads_what_a_model_is(hub: LocalHub, folder: Path) -> None:
    commit = hub.add_repo("org/name", folder, licence="mit", tags=["tiny"], pipeline_tag="text-generation")
    info = HfApi(endpoint=hub.url, token=False).model_info("org/name", files_metadata=True)
    assert (info.id, info.sha, info.private, info.gated) == ("org/name", commit, False, False)
    assert info.tags == ["tiny", "license:mit"]
    assert info.pipeline_tag == "text-generation"
    assert info.card_data is not None
    assert info.card_data.license == "mit"
    files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    assert files.keys() == read_folder(folder).keys()
    # As `git hash-object` has it.
    assert files["config.json"].blob_id == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert files["config.json"].lfs is None
    weights = files[WEIGHTS_PATH]
    assert weights.lfs is not None
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{weights.lfs.sha256}\nsize {weights.size}\n"
    assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert (weights.size, weights.lfs.size, weights.lfs.pointer_size) == (len(WEIGHTS), len(WEIGHTS), len(pointer))
    assert weights.blob_id == hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode()).hexdigest()


@pytest.mark.parametrize("page", [1, 3, 1000])
def test_a_snapshot_equals_its_folder_however_short_the_pages(
    hub: LocalHub, folder: Path, tmp_path: Path, page: int
) -> None:
    commit = hub.add_repo("org/name", folder)
    hub.protocol.tree_page_entries = page
    snapshot = Path(snapshot_download("org/name", endpoint=hub.url, cache_dir=tmp_path / "cache", token=False))
    assert snapshot.name == commit
    assert read_folder(snapshot) == read_folder(folder)
    assert hub.requests.sent_bytes("cdn") == len(WEIGHTS)
    pages = hub.requests.matching("api", "*/tree/*")
    assert len(pages) == -(-len(read_folder(folder)) // page)


def test_the_client_reads_where_a_file_is_without_fetching_it(hub: LocalHub, folder: Path) -> None:
    commit = hub.add_repo("org/name", folder, xet=True)
    base = f"{hub.url}/org/name/resolve/main"
    large = get_hf_file_metadata(f"{base}/sub%20folder/model.safetensors", token=False, endpoint=hub.url)
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    assert (large.commit_hash, large.etag, large.size) == (commit, sha256, len(WEIGHTS))
    assert large.location == weights_url(hub)
    assert large.xet_file_data is not None
    assert large.xet_file_data.refresh_route.startswith(hub.url)
    small = get_hf_file_metadata(f"{base}/config.json", token=False, endpoint=hub.url)
    assert (small.commit_hash, small.etag) == (commit, "ce013625030ba8dba906f756967f9e9ca394464a")
    assert (small.size, small.location, small.xet_file_data) == (6, f"{base}/config.json", None)
    assert hub.requests.sent_bytes() == 0


def test_what_git_and_the_client_keep_in_a_folder_is_not_served(hub: LocalHub, folder: Path) -> None:
    commit = hub.add_repo("org/name", folder)
    for name in (".git", ".cache"):
        (folder / name).mkdir()
        (folder / name / "state").write_bytes(b"kept")
    assert hub.commit("org/name", folder) == commit


def test_files_of_some_size_are_large_whatever_their_suffix(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    hub.add_repo("org/name", folder, large_bytes=6)
    assert download(hub, tmp_path) == b"hello\n"
    assert [request.status for request in hub.requests.matching("cdn", "*/config.json")] == [200]


def test_a_new_commit_moves_its_branch_and_leaves_the_old_one(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    old = hub.add_repo("org/name", folder)
    new = hub.commit("org/name", make_folder(tmp_path / "newer", b"newer"))
    other = hub.commit("org/name", folder, revision="refs/pr/1")
    assert other == old != new
    file = WEIGHTS_PATH
    assert download(hub, tmp_path, file) == b"newer"
    assert download(hub, tmp_path, file, revision=old) == WEIGHTS
    assert download(hub, tmp_path, file, revision="refs/pr/1") == WEIGHTS
    refs = HfApi(endpoint=hub.url, token=False).list_repo_refs("org/name")
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": new, "refs/pr/1": old}


@pytest.mark.parametrize(
    ("range_", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=99990-", (99_990, 100_000)),
        ("bytes=99990-200000", (99_990, 100_000)),
        ("bytes=-7", (99_993, 100_000)),
        ("bytes=500-1499", (500, 1500)),
    ],
)
def test_a_range_is_these_bytes_and_no_others(hub: LocalHub, folder: Path, range_: str, span: tuple[int, int]) -> None:
    hub.add_repo("org/name", folder)
    status, headers, body = get(weights_url(hub), range_)
    assert (status, body) == (206, WEIGHTS[slice(*span)])
    assert headers["Content-Range"] == f"bytes {span[0]}-{span[1] - 1}/100000"
    assert headers["Accept-Ranges"] == "bytes"


def test_a_range_beyond_the_end_is_refused_and_of_another_file_ignored(hub: LocalHub, folder: Path) -> None:
    hub.add_repo("org/name", folder)
    status, headers, _ = get(weights_url(hub), "bytes=100000-")
    assert (status, headers["Content-Range"]) == (416, "bytes */100000")
    etag = headers["ETag"]
    assert get(weights_url(hub), "bytes=5-", if_range=etag)[0] == 206
    assert get(weights_url(hub), "bytes=5-", if_range='"another"')[::2] == (200, WEIGHTS)


@pytest.mark.parametrize("token", [False, STRANGER])
def test_a_private_model_is_not_there_except_for_its_readers(
    hub: LocalHub, folder: Path, tmp_path: Path, token: Token
) -> None:
    hub.add_repo("org/name", folder, private=True, readers=[READER])
    status = 404 if token else 401
    for ask in (
        lambda: HfApi(endpoint=hub.url, token=token).model_info("org/name"),
        lambda: download(hub, tmp_path, token=token),
    ):
        with pytest.raises(RepositoryNotFoundError) as refused:
            ask()
        assert refused.value.response.status_code == status
        assert not isinstance(refused.value, GatedRepoError)
    assert download(hub, tmp_path, token=READER) == b"hello\n"


@pytest.mark.parametrize("token", [False, STRANGER])
def test_of_a_gated_model_all_may_read_the_description(
    hub: LocalHub, folder: Path, tmp_path: Path, token: Token
) -> None:
    hub.add_repo("org/name", folder, gated=True, readers=[READER])
    api = HfApi(endpoint=hub.url, token=token)
    assert api.model_info("org/name").gated == "manual"
    for ask in (lambda: download(hub, tmp_path, token=token), lambda: api.auth_check("org/name")):
        with pytest.raises(GatedRepoError) as refused:
            ask()
        assert refused.value.response.status_code == (403 if token else 401)
    assert download(hub, tmp_path, token=READER) == b"hello\n"


def test_what_is_missing_is_named_as_the_client_knows_it(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    commit = hub.add_repo("org/name", folder)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("org/other", "config.json", endpoint=hub.url, cache_dir=tmp_path, token=False)
    with pytest.raises(RevisionNotFoundError):
        download(hub, tmp_path, revision="next")
    api = HfApi(endpoint=hub.url, token=False)
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/name", revision="next")
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("org/name", "no folder"))
    with pytest.raises(RemoteEntryNotFoundError) as refused:
        download(hub, tmp_path, "none.json")
    assert refused.value.response.headers["X-Repo-Commit"] == commit


def test_an_unknown_token_is_refused_even_where_none_is_needed(hub: LocalHub, folder: Path) -> None:
    hub.add_repo("org/name", folder)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as refused:
        HfApi(endpoint=hub.url, token="hf_expired").model_info("org/name")
    assert refused.value.response.status_code == 401
    assert not isinstance(refused.value, RepositoryNotFoundError)


def test_the_token_stays_with_the_hub(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    hub.add_repo("org/name", folder, private=True, readers=[READER])
    snapshot_download("org/name", endpoint=hub.url, cache_dir=tmp_path / "cache", token=READER)
    asked = [request for request in hub.requests if request.kind != "cdn"]
    assert {request.token for request in asked} == {READER}
    (fetched,) = hub.requests.matching("cdn")
    assert fetched.status == 200
    assert fetched.headers["Authorization"] is None


def run_client(hub_url: str, cache: Path, code: str, **environment: str) -> subprocess.Popen[str]:
    """A process of the client's own, with what it reads of its environment."""
    own = {"HF_ENDPOINT": hub_url, "HF_HOME": str(cache), "HF_HUB_CACHE": str(cache), **environment}
    command = [sys.executable, "-c", f"import huggingface_hub as hub; {code}"]
    return subprocess.Popen(command, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True)


def test_xet_storage_never_answers_and_plain_http_does(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    hub.add_repo("org/name", folder, xet=True)
    code = "print(hub.snapshot_download('org/name'))"
    waiting = run_client(hub.url, tmp_path / "xet", code, HF_HUB_DISABLE_XET="0")
    try:
        eventually(lambda: hub.requests.matching("cas"), within=30)
        assert hub.requests.matching("cdn") == []
        with pytest.raises(TimeoutError):
            get(f"{hub.url}/cas/v1/reconstructions/{'0' * 64}", timeout=0.3)
        assert waiting.poll() is None
    finally:
        waiting.kill()
        waiting.communicate()
    plain = run_client(hub.url, tmp_path / "plain", code, HF_HUB_DISABLE_XET="1")
    output, _ = plain.communicate(timeout=60)
    assert read_folder(Path(output.strip())) == read_folder(folder)
    assert hub.requests.sent_bytes("cdn") == len(WEIGHTS)


def test_a_process_serves_folders_until_it_is_interrupted(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.hub", str(folder), f"org/name={folder}", "--slow", "1e6"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            name, _, url = server.stdout.readline().strip().partition("=")
            assert name == "HF_ENDPOINT"
            for repo in (f"local/{folder.name}", "org/name"):
                code = f"print(hub.snapshot_download('{repo}'))"
                output, _ = run_client(url, tmp_path / "cache", code).communicate(timeout=60)
                assert read_folder(Path(output.strip())) == read_folder(folder)
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=10) == 0
        finally:
            server.kill()


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.hub", str(tmp_path / "none")]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert f"{tmp_path / 'none'} is no folder" in ended.stderr


def test_a_large_file_is_hashed_once_and_again_when_it_has_changed(hub: LocalHub, folder: Path) -> None:
    first = hub.add_repo("org/name", folder)
    weights = folder / WEIGHTS_PATH
    times = weights.stat()
    weights.write_bytes(bytes(len(WEIGHTS)))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    # It looks the same, and nobody has read it.
    assert hub.commit("org/name", folder) == first
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert hub.commit("org/name", folder) != first


def test_a_file_that_has_become_shorter_ends_the_connection(hub: LocalHub, folder: Path) -> None:
    hub.add_repo("org/name", folder)
    os.truncate(folder / WEIGHTS_PATH, 1000)
    _, headers, body = get(weights_url(hub), timeout=5)
    assert (headers["Content-Length"], body) == ("100000", WEIGHTS[:1000])


def test_a_client_that_goes_away_is_no_error_and_leaves_bytes_uncounted(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # One piece to the server, and more than the kernel takes of it for a client with little room.
    weights = bytes(4 * 2**20)
    with LocalHub() as hub, socket.socket() as client:
        hub.add_repo("org/name", make_folder(folder, weights))
        address = urlsplit(hub.cdn_url)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((address.hostname, address.port))
        path = f"/org/name/{hashlib.sha256(weights).hexdigest()}/sub%20folder/model.safetensors"
        client.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        received = client.recv(1000)
        client.close()
    (request,) = hub.requests
    assert len(received) <= request.sent_bytes < len(weights)
    assert capfd.readouterr().err == ""


def test_large_files_cost_little_time(hub: LocalHub, folder: Path) -> None:
    size = 256 * 2**20
    (folder / "big").mkdir()
    with (folder / "big" / "zeros.bin").open("wb") as file:
        file.truncate(size)
    hub.add_repo("org/name", folder)
    (entry,) = HfApi(endpoint=hub.url, token=False).list_repo_tree("org/name", "big")
    assert isinstance(entry, RepoFile)
    assert entry.lfs is not None
    parts = urlsplit(f"{hub.cdn_url}/org/name/{entry.lfs.sha256}/big/zeros.bin")
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port)
    buffer = bytearray(2**20)
    began = time.monotonic()
    connection.request("GET", parts.path)
    response = connection.getresponse()
    while response.readinto(buffer):
        pass
    connection.close()
    assert hub.requests.sent_bytes("cdn") == size
    assert time.monotonic() - began < 5


def test_a_small_reply_waits_for_no_acknowledgement_of_the_one_before(hub: LocalHub, folder: Path) -> None:
    hub.add_repo("org/name", folder)
    address = urlsplit(hub.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port)

    def read() -> bytes:
        connection.request("GET", "/org/name/resolve/main/config.json")
        return connection.getresponse().read()

    took = [seconds for seconds, _ in (measure(read) for _ in range(21))]
    connection.close()
    # Delayed acknowledgements come after 40 ms.
    assert statistics.median(took) < 0.03
