"""The files on one node: found by huggingface_hub as by us, and never deleted while somebody has to do with them."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir, try_to_load_from_cache

from bitinglip.registry.cache import ModelCache
from tests.registry.kept import keep_files, list_files

REPO = "org/name"
CONTENTS = {"config.json": b"{}", "model.safetensors": b"weights", "text_encoder/model.safetensors": b"others"}

HOLD = """
import sys
from pathlib import Path
from bitinglip.registry.cache import ModelCache
descriptor = ModelCache(Path(sys.argv[1])).lock_to_use("org/name")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "hub")


def test_a_linked_model_is_found_by_the_real_client(cache: ModelCache) -> None:
    manifest = keep_files(cache, REPO, CONTENTS)
    for path, content in CONTENTS.items():
        found = try_to_load_from_cache(REPO, path, cache_dir=cache.folder)
        assert isinstance(found, str)
        assert Path(found).read_bytes() == content
    (repo,) = scan_cache_dir(cache.folder).repos
    (revision,) = repo.revisions
    assert (repo.repo_id, revision.commit_hash, revision.refs) == (REPO, manifest.commit, frozenset({"main"}))
    assert cache.is_linked(REPO, manifest)


def test_a_revision_is_a_name_for_its_commit(cache: ModelCache) -> None:
    manifest = keep_files(cache, REPO, CONTENTS, revision="refs/pr/1")
    assert (cache.find_repo(REPO) / "refs" / "refs" / "pr" / "1").read_text() == manifest.commit


def test_a_link_that_leads_elsewhere_is_made_anew(cache: ModelCache, tmp_path: Path) -> None:
    manifest = keep_files(cache, REPO, CONTENTS)
    (tmp_path / "other").write_bytes(b"nothing")
    link = cache.find_snapshot(REPO, manifest.commit) / "model.safetensors"
    link.unlink()
    link.symlink_to(tmp_path / "other")
    cache.link(REPO, manifest, None)
    assert link.read_bytes() == b"weights"


@pytest.mark.parametrize("path", ["config.json", "text_encoder/model.safetensors"])
def test_a_model_without_one_of_its_files_is_not_linked(cache: ModelCache, path: str) -> None:
    manifest = keep_files(cache, REPO, CONTENTS)
    file = manifest.get(path)
    assert file is not None
    cache.find_blob(REPO, file).write_bytes(b"another length")
    assert not cache.is_linked(REPO, manifest)
    assert cache.list_missing(REPO, manifest) == [file]
    cache.find_blob(REPO, file).unlink()
    assert not cache.is_linked(REPO, manifest)


def test_deleting_a_commit_leaves_what_another_one_links(cache: ModelCache) -> None:
    first = keep_files(cache, REPO, CONTENTS)
    second = keep_files(cache, REPO, {**CONTENTS, "model.safetensors": b"newer weights"}, revision="v2")
    assert cache.delete(REPO, first.commit) == len(b"weights")
    assert cache.is_linked(REPO, second)
    assert not cache.find_snapshot(REPO, first.commit).exists()
    assert not (cache.find_repo(REPO) / "refs" / "main").exists()
    assert (cache.find_repo(REPO) / "refs" / "v2").exists()


def test_deleting_the_last_commit_leaves_nothing(cache: ModelCache) -> None:
    manifest = keep_files(cache, REPO, CONTENTS)
    assert cache.delete(REPO, manifest.commit) == sum(map(len, CONTENTS.values()))
    assert not cache.find_repo(REPO).exists()


def test_orphans_are_deleted_and_linked_files_are_not(cache: ModelCache) -> None:
    manifest = keep_files(cache, REPO, CONTENTS)
    (cache.find_snapshot(REPO, manifest.commit) / "config.json").unlink()
    cache.delete_orphans(REPO, manifest)
    assert [file.path for file in cache.list_missing(REPO, manifest)] == ["config.json"]


def test_a_folder_of_orphans_only_goes_with_them(cache: ModelCache) -> None:
    manifest = keep_files(cache, REPO, CONTENTS)
    cache.unlink(REPO, manifest.commit)
    assert cache.has_any(REPO, manifest)
    cache.delete_orphans(REPO, manifest)
    assert not cache.has_any(REPO, manifest)
    assert not cache.find_repo(REPO).exists()


def test_a_folder_with_something_else_in_it_stays(cache: ModelCache) -> None:
    manifest = keep_files(cache, REPO, CONTENTS)
    cache.unlink(REPO, manifest.commit)
    (cache.find_repo(REPO) / "blobs" / "somebody's.incomplete").touch()
    cache.delete_orphans(REPO, manifest)
    assert list_files(cache.find_repo(REPO)) == ["blobs/somebody's.incomplete"]


def test_one_at_a_time_writes(cache: ModelCache) -> None:
    inside: list[int] = []
    most: list[int] = []

    def write(number: int) -> None:
        with cache.lock_to_write(REPO) as is_mine:
            assert is_mine
            inside.append(number)
            most.append(len(inside))
            threading.Event().wait(0.01)
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert max(most) == 1


def test_waiting_to_write_can_be_stopped(cache: ModelCache) -> None:
    stop = threading.Event()
    stop.set()
    with cache.lock_to_write(REPO), cache.lock_to_write(REPO, stop) as is_mine:
        assert not is_mine


def test_who_is_being_written_to_is_not_deleted(cache: ModelCache) -> None:
    with cache.lock_to_write(REPO), cache.lock_to_delete(REPO) as is_mine:
        assert not is_mine


def test_who_is_used_by_another_process_is_not_deleted_until_that_is_killed(cache: ModelCache) -> None:
    command = [sys.executable, "-c", HOLD, str(cache.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with cache.lock_to_delete(REPO) as is_mine:
            assert not is_mine
        holder.kill()
        holder.wait()
        with cache.lock_to_delete(REPO) as is_mine:
            assert is_mine


def test_any_number_use_a_model_at_once(cache: ModelCache) -> None:
    descriptors = [cache.lock_to_use(REPO) for _ in range(3)]
    with cache.lock_to_delete(REPO) as is_mine:
        assert not is_mine
    for descriptor in descriptors:
        os.close(descriptor)
    with cache.lock_to_delete(REPO) as is_mine:
        assert is_mine


def test_all_who_see_a_folder_know_it_by_one_id(cache: ModelCache, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: ModelCache(cache.folder).find_store_id(), range(8)))
    assert len(ids) == 1
    assert ModelCache(tmp_path / "other").find_store_id() not in ids
