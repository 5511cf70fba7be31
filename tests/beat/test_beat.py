"""Real beats: two that share a schedule, one that is killed, servers that go away."""

import json
import signal

from sqlalchemy import text
from sqlalchemy.engine import make_url

from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from tests.beat.conftest import StartBeat, read_events
from tests.conftest import System, eventually
from tests.factories import execute

EVERY_SECOND = '[recurring.tick]\nevery = 1\ntask = "echo"\ntext = "tick"\nagent = "clock"\n'


def list_keys(database: Database) -> list[str]:
    return [row.idempotency_key for row in execute(database, "SELECT idempotency_key FROM tasks ORDER BY seq")]


def wait_for_more(database: Database, count: int) -> None:
    """Return when so many more tasks are recorded."""
    wanted = len(list_keys(database)) + count
    eventually(lambda: len(list_keys(database)) >= wanted, within=20)


def test_two_beats_run_each_due_time_once_and_the_one_goes_on_when_the_other_is_killed(
    start_beat: StartBeat, processes: System, database: Database
) -> None:
    for name in ("one", "two"):
        start_beat(EVERY_SECOND, name)
    eventually(lambda: all(read_events(processes, name, "beat_started") for name in ("one", "two")), within=20)
    wait_for_more(database, 5)

    processes.kill("one")
    wait_for_more(database, 3)
    processes.processes["two"].send_signal(signal.SIGTERM)
    assert processes.wait("two") == 0

    keys = list_keys(database)
    logged = [
        entry["task_id"] for name in ("one", "two") for entry in read_events(processes, name, "recurring_submitted")
    ]
    assert keys == sorted(set(keys)), "in their order, none twice"
    assert len(set(logged)) == len(logged), "the claim alone was enough: no key had to help"
    # A beat that was killed may not have said what it did last.
    assert len(keys) - 1 <= len(logged) <= len(keys)
    assert len(read_events(processes, "two", "recurring_submitted")) >= 3


def test_a_beat_writes_no_file_and_one_that_starts_again_goes_on_where_it_was(
    start_beat: StartBeat, processes: System, database: Database
) -> None:
    folder = start_beat(EVERY_SECOND)
    wait_for_more(database, 1)
    processes.kill("beat")
    absent_since = list_keys(database)
    assert list(folder.iterdir()) == []
    assert "schedule ->" in processes.read_log("beat")

    execute(database, "UPDATE recurring SET last_due_at = last_due_at - interval '1 day'")
    execute(database, "DELETE FROM tasks")
    start_beat(EVERY_SECOND)
    wait_for_more(database, 2)

    assert min(list_keys(database)) >= max(absent_since), "a day of missed seconds was one"


def test_a_beat_waits_for_postgresql(
    start_beat: StartBeat, processes: System, database: Database, servers: ServerUrls, urls: ServerUrls
) -> None:
    start_beat(EVERY_SECOND)
    wait_for_more(database, 1)
    name = make_url(urls.database_url).database
    admin = Database(servers.database_url)
    with admin.engine.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :n"), {"n": name}
        )
        eventually(lambda: read_events(processes, "beat", "beat_delayed"))
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
    admin.close()
    database.close()

    wait_for_more(database, 2)
    assert processes.processes["beat"].poll() is None


def test_a_beat_with_a_bad_schedule_ends_with_its_code_and_no_traceback(
    start_beat: StartBeat, processes: System
) -> None:
    start_beat("[recurring.a]\nevery = 0\n")

    assert processes.wait("beat") == 2
    log = processes.read_log("beat")
    assert "recurring.a.every is 0" in log
    assert "Traceback" not in log


def test_a_beat_waits_for_the_schema(start_beat: StartBeat, processes: System, database: Database) -> None:
    [(revision,)] = execute(database, "SELECT version_num FROM alembic_version")
    execute(database, "UPDATE alembic_version SET version_num = '0001'")
    start_beat(EVERY_SECOND)
    [delayed, *_] = eventually(lambda: read_events(processes, "beat", "beat_delayed"), within=20)
    assert "run 'bitinglip db upgrade'" in delayed["reason"]

    execute(database, "UPDATE alembic_version SET version_num = :revision", revision=revision)
    wait_for_more(database, 1)


def test_a_task_that_beat_submits_is_announced(start_beat: StartBeat, urls: ServerUrls) -> None:
    import redis

    with redis.Redis.from_url(urls.redis_url) as connection, connection.pubsub() as channel:
        channel.subscribe("bitinglip:transitions")
        start_beat(EVERY_SECOND)

        def hear() -> object:
            message = channel.get_message(ignore_subscribe_messages=True, timeout=0.1)
            return message and json.loads(message["data"])

        said = eventually(hear, within=20)
    assert isinstance(said, dict)
    assert (said["event"], said["agent_id"]) == ("queued", "clock")
