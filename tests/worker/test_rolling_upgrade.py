"""Old workers run beside new ones on the new schema, and nothing is lost between them.

The old worker is the code of the release before, taken from the project's own history.
"""

import os
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from bitinglip.client import Client
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.store.migrate import downgrade, upgrade
from tests.conftest import REPOSITORY, System, wait_for_workers
from tests.factories import execute, read_outcomes

OLD_COMMIT = "edf1f83b08d64e1479c6d37df29be8d83e6e32f9"
OLD_REVISION = "0001"

ENTRY_POINTS = """[bitinglip.kinds]
text = bitinglip.domain.catalogue:TEXT
echo = bitinglip.domain.catalogue:ECHO
"""


@pytest.fixture
def old_code(tmp_path: Path) -> Path:
    """A folder that makes Python import the old code in place of the new."""
    git = ["git", "-C", str(REPOSITORY), "archive", OLD_COMMIT, "bitinglip", "celeryconfig.py", "migrations", "workers"]
    archive = subprocess.run(git, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip("the history does not reach back to the release before: a shallow clone")
    folder = tmp_path / "old"
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    metadata = folder / "bitinglip-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bitinglip\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def test_old_and_new_workers_together_lose_nothing(
    processes: System, urls: ServerUrls, database: Database, old_code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downgrade(database, OLD_REVISION)
    monkeypatch.setenv("PYTHONPATH", f"{old_code}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    processes.working_folder = old_code
    processes.start_worker("old")
    wait_for_workers(database, 1)
    monkeypatch.delenv("PYTHONPATH")
    processes.working_folder = REPOSITORY

    upgrade(database)
    processes.start_dispatcher()
    processes.start_worker("new")
    wait_for_workers(database, 2)

    with Client(*urls) as client:
        handles = [client.submit("echo", text=str(n), seconds=0.2) for n in range(60)]
        handles += [client.submit("echo", text="again", fail="retryable", fail_attempts=1) for _ in range(4)]
        processes.processes["old"].terminate()
        assert processes.wait("old", within=20) == 0
        results = [handle.result(timeout=60) for handle in handles]

    assert results == [{"text": str(n)} for n in range(60)] + 4 * [{"text": "again"}]
    assert {tuple(read_outcomes(database, handle.id)) for handle in handles[:60]} == {((1, "completed"),)}
    workers = execute(database, "SELECT DISTINCT w.name FROM attempts AS a JOIN workers AS w ON w.id = a.worker_id")
    assert {name.partition("@")[0] for (name,) in workers} == {"old", "new"}
