"""What a handle says of the download that its task waits for."""

from bitinglip.client import Client
from bitinglip.store.database import Database
from tests.factories import execute


def test_a_handle_finds_the_download_that_its_task_waits_for(client: Client, database: Database) -> None:
    first = client.submit("echo")
    download = client.submit("download", model="org/name", agent="ann")
    child = client.submit("echo", depends_on=[first, download])
    other = client.submit("echo", depends_on=[first])

    found = child.find_download()

    assert found is not None
    assert found.id == download.id
    assert [handle.find_download() for handle in (first, download, other)] == [None, None, None]
    # Its child is told a moment later.
    ended = "UPDATE tasks SET status = 'failed', queue_state = NULL, error_code = 'x', finished_at = now()"
    execute(database, f"{ended} WHERE id = :id", id=download.id)
    assert child.find_download() is None
