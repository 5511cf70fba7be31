"""What people ask of queues and waits is counted to a bound, from indexes, with 100,000 tasks of 1,000 agents."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, text

from bitinglip.lifecycle.explain import explain_ready
from bitinglip.settings import ServerUrls
from bitinglip.store import explaining, queries, quoting
from bitinglip.store.database import Database
from bitinglip.store.lanes import LaneKey
from tests.conftest import own_urls
from tests.factories import execute, make_worker
from tests.store.explained import count_read, explain_plans, walk

TASKS = 100_000
AGENTS = 1_000

FILL = (
    """
    INSERT INTO tasks (id, type, status, queue_state, priority, agent_id, model, max_attempts, created_at, not_before,
                       started_at, finished_at, error_code)
    SELECT gen_random_uuid(), 'echo', s.status, s.queue_state,
           (CASE WHEN n % 7 = 0 THEN 'high' ELSE 'medium' END)::task_priority,
           CASE WHEN n % 10 = 3 THEN 'greedy' ELSE 'agent-' || n / 10 % :agents END, 'm' || n % 3, 4,
           now() - interval '1 minute', now(), now(),
           CASE WHEN s.status <> 'pending' THEN now() END, 'e'
    FROM generate_series(1, :tasks) AS n CROSS JOIN LATERAL (
        SELECT (CASE WHEN n % 10 = 6 THEN 'completed' ELSE 'pending' END)::task_status AS status,
               (CASE WHEN n % 10 = 8 THEN 'scheduled' WHEN n % 10 = 9 THEN 'blocked' WHEN n % 10 <> 6 THEN 'ready' END
               )::task_queue_state AS queue_state
    ) AS s
    """,
    "INSERT INTO queues (type, model, agent_id, priority) SELECT DISTINCT type, model, agent_id, priority FROM tasks",
    "INSERT INTO agents (id) SELECT DISTINCT agent_id FROM tasks",
    "INSERT INTO pools (name, kinds) VALUES ('default', '{echo}')",
)
BURST = (
    "INSERT INTO agent_shares (pool, agent_id, virtual_time) SELECT 'default', id, random() FROM agents",
    """
    INSERT INTO lanes (pool, type, model, agent_id, priority, virtual_time)
    SELECT 'default', type, model, agent_id, priority, virtual_time FROM queues JOIN agent_shares USING (agent_id)
    """,
    "INSERT INTO costs SELECT 'default', 'echo', model, agent_id, 9, 1, 1, 1, 1 FROM queues ON CONFLICT DO NOTHING",
    """
    INSERT INTO agent_usage
    SELECT date_trunc('minute', now()) - make_interval(mins => m), 'default', id, 1, 1, 1, 1
    FROM agents, generate_series(0, 9) AS m
    """,
)
"""After it PostgreSQL's statistics are out of date."""


@pytest.fixture(scope="module")
def full(servers: ServerUrls) -> Iterator[Database]:
    """A database with many tasks in every state, and all that dispatchers know of them."""
    with own_urls(servers) as urls:
        database = Database(urls.database_url)
        for name in ("a", "b"):
            make_worker(database, name)
        for sql in FILL:
            values = {"tasks": TASKS, "agents": AGENTS} if ":tasks" in sql else {}
            execute(database, sql, **values)
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        for sql in BURST:
            execute(database, sql)
        yield database
        database.close()


def explain_last(connection: Connection) -> None:
    """Ask for the last of all, before whom everybody goes."""
    explain_ready(connection, LaneKey("echo", "m1", "greedy", "low"), swap_seconds=10)


QUESTIONS: dict[str, tuple[Callable[[Connection], Any], int]] = {
    "explain": (explain_last, 2 * explaining.TASKS_COUNTED),
    "queues of an agent": (lambda connection: queries.list_queues(connection, "greedy"), 30_000),
    "queues": (lambda connection: queries.list_queues(connection, limit=50), 20_000),
    "agents": (lambda connection: queries.list_agents(connection, limit=50), 20_000),
    "what to quote": (lambda connection: quoting.list_unquoted(connection, every_seconds=1e6, most=1), 100),
    "comparison": (quoting.compare_quotes, 100),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_reads_no_more_tasks_than_its_bound(full: Database, name: str) -> None:
    ask, most = QUESTIONS[name]
    read = 0.0
    for plan in explain_plans(full, ask):
        for node in walk(plan):
            if node.get("Relation Name") in {"tasks", "task_details"} and node["Actual Loops"]:
                assert node["Node Type"] != "Seq Scan", node
                read += count_read(node)
    assert read <= most


def test_statistics_count_from_an_index(full: Database) -> None:
    for plan in explain_plans(full, queries.get_stats):
        for node in walk(plan):
            assert node.get("Relation Name") != "tasks" or node["Node Type"] != "Seq Scan", node


def test_the_position_is_near_the_truth_where_lanes_are_sampled(full: Database) -> None:
    with full.transaction() as connection:
        line = explain_ready(connection, LaneKey("echo", "m1", "nobody", "low"), swap_seconds=10)[1]
    ready = execute(full, "SELECT count(*) FROM tasks WHERE queue_state = 'ready'")[0][0]

    assert line is not None
    assert not line.is_exact
    assert line.position == pytest.approx(ready, rel=0.5)
