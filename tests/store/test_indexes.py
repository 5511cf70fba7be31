"""Every list that people ask for and every question of the hot path is answered from an index, at 200,000 tasks."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from bitinglip.settings import ServerUrls
from bitinglip.store import lanes, queries, queues, waiting, workers
from bitinglip.store.database import Database
from bitinglip.store.submissions import Limits, insert_tasks
from bitinglip.store.tasks import Doorbell, claim_tasks
from tests.conftest import own_urls
from tests.factories import execute, make_echo, make_worker
from tests.store.explained import count_read, explain

TASKS = 200_000
MANY = TASKS // 40
"""Rows that no answer of a page may need to look at."""

FILL = (
    """
    INSERT INTO tasks (id, type, status, queue_state, priority, agent_id, channel_id, model, max_attempts, worker_id,
                       error_code, created_at, not_before, finished_at, reserved_at)
    SELECT gen_random_uuid(), 'echo', s.status, s.queue_state,
           (CASE WHEN n % 5000 = 7 THEN 'critical' WHEN n % 3 = 0 THEN 'high' ELSE 'medium' END)::task_priority,
           CASE WHEN n % 4000 = 11 THEN 'rare' ELSE 'agent-' || n % 20 END,
           CASE WHEN n % 3 > 0 THEN (10::numeric ^ 17 + n % 1000)::text END, 'demo', 4,
           CASE WHEN s.queue_state = 'reserved' OR s.status = 'in_progress' THEN CAST(:worker AS uuid) END,
           CASE WHEN s.status = 'failed' THEN 'echo_error' END,
           now() - make_interval(secs => :tasks - n), CASE WHEN s.queue_state = 'scheduled' THEN now() END,
           CASE WHEN s.status IN ('completed', 'failed', 'cancelled') THEN now() END, now()
    FROM generate_series(1, :tasks) AS n CROSS JOIN LATERAL (
        SELECT (CASE WHEN n % 4000 = 1 THEN 'failed' WHEN n % 4000 = 2 THEN 'in_progress'
                     WHEN n % 4000 = 3 OR n % 2 = 0 THEN 'pending' ELSE 'completed' END)::task_status AS status,
               (CASE WHEN n % 4000 IN (1, 2) THEN NULL WHEN n % 4000 = 3 THEN 'reserved'
                     WHEN n % 4000 = 4 THEN 'scheduled'
                     WHEN n % 2 = 0 THEN 'ready' END)::task_queue_state AS queue_state
    ) AS s
    """,
    """
    INSERT INTO task_details (task_id, title, payload, metadata)
    SELECT id, 'echo', '{}', CASE WHEN seq % 1000 = 0 THEN jsonb_build_object('run', seq / 1000) ELSE '{}' END
    FROM tasks
    """,
    "INSERT INTO queues (type, model, agent_id, priority)"
    " SELECT DISTINCT type, coalesce(model, ''), agent_id, priority FROM tasks",
    "INSERT INTO agents (id) SELECT DISTINCT agent_id FROM tasks",
)


@pytest.fixture(scope="module")
def full(servers: ServerUrls) -> Iterator[Database]:
    """A database with 200,000 tasks of every state."""
    with own_urls(servers) as urls:
        database = Database(urls.database_url)
        worker = make_worker(database)
        for sql in FILL:
            values = {"tasks": TASKS, "worker": worker} if ":tasks" in sql else {}
            execute(database, sql, **values)
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        yield database
        database.close()


def check_uses_indexes(nodes: list[dict[str, Any]], *, most_rows: int = MANY) -> None:
    """No table scan of tasks, and no index walked from end to end."""
    for node in nodes:
        if node.get("Relation Name") in {"tasks", "task_details"}:
            assert node["Node Type"] != "Seq Scan", node
            assert count_read(node) <= most_rows, node


NOW = datetime.now(UTC)
LISTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "next page": {"before_seq": TASKS // 2},
    "status": {"statuses": ["failed"]},
    "common status": {"statuses": ["completed"]},
    "statuses": {"statuses": ["failed", "in_progress"]},
    "priority": {"priorities": ["critical"]},
    "common priority": {"priorities": ["medium"]},
    "missing priority": {"priorities": ["low"]},
    "agent": {"agent_id": "rare"},
    "common agent": {"agent_id": "agent-3"},
    "unknown agent": {"agent_id": "nobody"},
    "channel": {"channel_id": "100000000000000007"},
    "unknown channel": {"channel_id": "999999999999999999"},
    "since": {"since": NOW - timedelta(minutes=5)},
    "since now": {"since": NOW + timedelta(days=1)},
    "long since": {"since": NOW - timedelta(days=2)},
    "status and priority": {"statuses": ["failed"], "priorities": ["high"]},
    "statuses and priority": {"statuses": ["pending", "in_progress"], "priorities": ["critical"]},
    "agent and status": {"agent_id": "agent-1", "statuses": ["failed"]},
    "agent and common status": {"agent_id": "agent-1", "statuses": ["completed"]},
    "channel and status": {"channel_id": "100000000000000007", "statuses": ["completed"]},
    "status and since": {"statuses": ["failed"], "since": NOW - timedelta(hours=2)},
    "metadata": {"metadata": {"run": 7}},
    "unknown metadata": {"metadata": {"run": -1}},
    "metadata of an agent": {"metadata": {"run": 7}, "agent_id": "agent-0"},
}


@pytest.mark.parametrize("filters", LISTS.values(), ids=LISTS)
def test_a_list_reads_no_more_than_an_index_gives(full: Database, filters: dict[str, Any]) -> None:
    check_uses_indexes(explain(full, lambda connection: queries.list_tasks(connection, **filters)))


def test_a_filtered_list_gives_what_it_was_asked_for(full: Database) -> None:
    with full.transaction() as connection:
        tasks = queries.list_tasks(connection, priorities=["critical"], limit=10)
        page = queries.list_tasks(connection, priorities=["critical"], before_seq=tasks[-1].seq, limit=10)

    assert [task.seq for task in tasks + page] == sorted((task.seq for task in tasks + page), reverse=True)
    assert {task.priority for task in tasks + page} == {"critical"}
    assert len({task.seq for task in tasks + page}) == 20


def test_one_task_is_found_by_its_id(full: Database) -> None:
    task_id = execute(full, "SELECT id FROM tasks WHERE seq = 77")[0][0]

    check_uses_indexes(explain(full, lambda connection: queries.get_task(connection, task_id)), most_rows=1)
    check_uses_indexes(explain(full, lambda connection: queries.list_attempts(connection, task_id)), most_rows=1)


def test_the_heads_of_the_lanes_are_read_from_the_ready_index(full: Database) -> None:
    keys = [lanes.LaneKey("echo", "demo", f"agent-{n}", "medium") for n in range(20)]

    nodes = explain(full, lambda connection: queues.list_heads(connection, keys, 8))

    check_uses_indexes(nodes, most_rows=200)
    assert "tasks_ready" in {node.get("Index Name") for node in nodes}


def test_what_a_worker_holds_is_read_from_an_index(full: Database) -> None:
    worker = execute(full, "SELECT id FROM workers")[0][0]

    check_uses_indexes(explain(full, lambda connection: workers.list_held(connection, worker)), most_rows=200)
    check_uses_indexes(explain(full, queues.list_open_workers), most_rows=200)
    check_uses_indexes(explain(full, queries.list_workers), most_rows=400)


def test_the_sweep_reads_indexes(full: Database) -> None:
    check_uses_indexes(explain(full, workers.release_tasks), most_rows=200)
    check_uses_indexes(explain(full, waiting.wake_scheduled), most_rows=200)
    check_uses_indexes(explain(full, queues.recheck_emptied), most_rows=200)
    check_uses_indexes(explain(full, waiting.expire_tasks), most_rows=2_000)
    check_uses_indexes(
        explain(full, lambda connection: waiting.settle_parents(connection, waiting.lock_ended_parents(connection))),
        most_rows=200,
    )


def test_a_submission_reads_indexes(full: Database) -> None:
    def submit_one(connection: Connection) -> None:
        insert_tasks(connection, [make_echo()], limits=Limits(1_000, 100), max_attempts=1, ttl_seconds=300, exact=False)

    check_uses_indexes(explain(full, submit_one), most_rows=200)


def test_emptying_lanes_reads_the_ready_index(full: Database) -> None:
    keys = [lanes.LaneKey("echo", "demo", f"agent-{n}", "medium") for n in range(20)]

    check_uses_indexes(explain(full, lambda connection: lanes.mark_emptied(connection, keys)), most_rows=200)


def test_a_prepared_plan_is_as_good_as_a_fresh_one(full: Database) -> None:
    """What is planned once a connection must not have been planned for other values."""
    worker = execute(full, "SELECT id FROM workers")[0][0]
    reserved = execute(full, "SELECT id FROM tasks WHERE queue_state = 'reserved' LIMIT 20")
    doorbells = [Doorbell(task, 1) for (task,) in reserved]

    def claim(connection: Connection) -> None:
        connection.execute(text("SET plan_cache_mode = force_generic_plan"))
        claim_tasks(connection, doorbells, worker)

    check_uses_indexes(explain(full, claim), most_rows=200)


def test_the_depth_of_queues_is_a_bounded_count(full: Database) -> None:
    nodes = explain(full, lambda connection: queries.list_queues(connection, "agent-1"))

    assert not any(node["Node Type"] == "Seq Scan" and node.get("Relation Name") == "tasks" for node in nodes)
