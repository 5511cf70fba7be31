"""With a million tasks of ten thousand agents, what happens for every task reads a few rows; sizes stay flat."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from bitinglip.domain.task import make_request
from bitinglip.lifecycle.claim import claim_reserved
from bitinglip.lifecycle.edit import delete
from bitinglip.lifecycle.finish import finish_attempts
from bitinglip.settings import ServerUrls
from bitinglip.store import charges, lanes, pulling, queues, submissions, tasks, waiting, workers
from bitinglip.store.database import Database
from bitinglip.store.lanes import LaneKey
from bitinglip.store.storage import STORAGE
from tests.conftest import own_urls
from tests.factories import dispatch, execute, make_echo, make_worker, submit
from tests.store.explained import count_read, explain_plans, walk

TASKS = 1_000_000
AGENTS = 10_000
MOST_ROWS = 3_000
MOST_PAGES = 15_000
HOT = {"tasks", "task_details", "attempts", "agents", "queues", "lanes", "agent_shares", "costs"}

FILL = (
    "SET session_replication_role = replica",
    """
    INSERT INTO tasks (id, type, status, queue_state, priority, agent_id, model, max_attempts, worker_id, charged,
                       error_code, has_children, created_at, not_before, started_at, finished_at, expires_at)
    SELECT gen_random_uuid(), 'echo', s.status, s.queue_state,
           (CASE n / 10 % 10 WHEN 0 THEN 'high' WHEN 1 THEN 'low' ELSE 'medium' END)::task_priority,
           -- One agent has a tenth of all.
           CASE WHEN n / 100 % 10 = 3 THEN 'greedy' ELSE 'agent-' || n / 100 % :agents END, 'm' || n / 1000 % 4, 4,
           CASE WHEN s.queue_state = 'reserved' OR s.status = 'in_progress' THEN (CAST(:workers AS uuid[]))[1 + n % 4]
           END, 1, CASE WHEN s.status = 'failed' THEN 'echo_error' END, n % 20000 = 6, now() - interval '1 day',
           CASE WHEN s.queue_state = 'scheduled' THEN now() + make_interval(secs => n) END,
           CASE WHEN s.queue_state IS NULL THEN now() END,
           CASE WHEN s.status IN ('completed', 'failed') THEN now() END,
           now() + make_interval(secs => n - 100)
    FROM generate_series(1, :tasks) AS n CROSS JOIN LATERAL (
        SELECT (CASE WHEN n % 10 = 6 THEN 'completed' WHEN n % 10 = 7 THEN 'failed' WHEN n % 4000 = 1 THEN 'in_progress'
                ELSE 'pending' END)::task_status AS status,
               (CASE WHEN n % 4000 = 1 THEN NULL WHEN n % 4000 = 2 THEN 'reserved' WHEN n % 10 = 8 THEN 'scheduled'
                     WHEN n % 10 = 9 THEN 'blocked' WHEN n % 10 < 6 THEN 'ready' END)::task_queue_state AS queue_state
    ) AS s
    """,
    "INSERT INTO task_details (task_id, title, payload) SELECT id, 'echo', '{}' FROM tasks",
    """
    INSERT INTO attempts (task_id, attempt, outcome)
    SELECT id, 1, status::text FROM tasks WHERE finished_at IS NOT NULL
    """,
    """
    INSERT INTO dependencies (child_id, parent_id)
    SELECT c.id, p.id FROM tasks AS p JOIN tasks AS c ON c.seq = p.seq + 3 WHERE p.has_children
    """,
    """
    INSERT INTO queues (type, model, agent_id, priority, listed)
    SELECT DISTINCT type, model, agent_id, priority, hashtext(agent_id) % 20 <> 0 FROM tasks WHERE queue_state = 'ready'
    """,
    """
    INSERT INTO agents (id, max_running)
    SELECT agent_id, CASE WHEN hashtext(agent_id) % 2 = 0 THEN 9 END FROM tasks GROUP BY agent_id
    """,
    "INSERT INTO pools (name, kinds) VALUES ('default', '{echo}')",
    "SET session_replication_role = origin",
)
ROUNDS_OWN = (
    "INSERT INTO agent_shares (pool, agent_id, virtual_time) SELECT 'default', id, random() FROM agents",
    """
    INSERT INTO lanes (pool, type, model, agent_id, priority, virtual_time, closed)
    SELECT 'default', type, model, agent_id, priority, virtual_time,
           CASE WHEN hashtext(agent_id) % 10 = 1 THEN 'max_running' END
    FROM queues JOIN agent_shares USING (agent_id) WHERE listed
    """,
    "INSERT INTO costs SELECT 'default', 'echo', model, agent_id, 1, 1, 1, 1, 1 FROM queues ON CONFLICT DO NOTHING",
    """
    INSERT INTO settlements (pool, type, model, agent_id, released, charged, cost, measured)
    SELECT 'default', type, model, agent_id, 1, 1, 2, 1 FROM tasks WHERE started_at IS NOT NULL LIMIT 64
    """,
)
"""As after a burst: PostgreSQL's statistics know nothing of it."""


@pytest.fixture(scope="module")
def full(servers: ServerUrls) -> Iterator[ServerUrls]:
    """A database with a million tasks in every state; its indexes are made when it is full."""
    with own_urls(servers) as urls:
        database = Database(urls.database_url)
        names = [str(make_worker(database, f"w{n}", slots=256)) for n in range(4)]
        values = {"tasks": TASKS, "agents": AGENTS, "workers": names}
        with database.statement() as connection:
            connection.execute(text("SET maintenance_work_mem = '512MB'"))
            secondary = """
                SELECT indexname, indexdef FROM pg_indexes AS i WHERE tablename = 'tasks'
                AND NOT EXISTS (SELECT FROM pg_constraint AS c WHERE c.conname = i.indexname)
            """
            indexes = connection.execute(text(secondary)).all()
            for name, _ in indexes:
                connection.execute(text(f"DROP INDEX {name}"))
            for sql in FILL:
                connection.execute(text(sql), {name: value for name, value in values.items() if f":{name}" in sql})
            for _, definition in indexes:
                connection.exec_driver_sql(definition)
            connection.execute(text("VACUUM ANALYZE"))
            for sql in ROUNDS_OWN:
                connection.execute(text(sql))
        database.close()
        yield urls


@pytest.fixture
def database(full: ServerUrls) -> Iterator[Database]:
    """Connections of this test's own: what is planned on them is planned here."""
    opened = Database(full.database_url)
    yield opened
    opened.close()


def pick(database: Database, where: str, limit: int = 16) -> list[UUID]:
    return [row[0] for row in execute(database, f"SELECT id FROM tasks WHERE {where} LIMIT {limit}")]


def check_reads_little(plans: list[dict[str, Any]]) -> None:
    """Indexes only, few rows from each, and few pages in all."""
    for plan in plans:
        for node in walk(plan):
            if node.get("Relation Name") in HOT:
                assert node["Node Type"] != "Seq Scan", node
                assert count_read(node) <= MOST_ROWS, node
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= MOST_PAGES, plan


KEYS = [LaneKey("echo", f"m{n % 4}", f"agent-{n}", "medium") for n in range(64)] + [
    LaneKey("echo", "m0", "greedy", band) for band in ("high", "medium", "low")
]
SERVED = {f"agent-{n}": (1.0 + n, 1) for n in range(16)} | {"greedy": (2.0, 3)}

ROUND: dict[str, Callable[[Connection], Any]] = {
    "settle": charges.settle_charges,
    "open workers": queues.list_open_workers,
    "new lanes": lambda c: lanes.list_new_lanes(c, ["default"], ["echo"]),
    "arrivals": lambda c: lanes.list_arrivals(c, "default", [*SERVED]),
    "open lanes": lambda c: lanes.open_lanes(c, "default", KEYS, dict.fromkeys((key.agent_id for key in KEYS), 1.0)),
    "lanes": lambda c: lanes.list_lanes(c, "default", ["echo"], depth=64, elders=8),
    "lanes for one": lambda c: lanes.list_lanes(c, "default", ["echo"], depth=1, elders=0),
    "heads": lambda c: queues.list_heads(c, KEYS, 8),
    "first heads": lambda c: queues.list_heads(c, KEYS, 1),
    "grants": lambda c: lanes.record_grants(c, "default", clock=3.0, grants=7, served=SERVED),
    "places": lambda c: lanes.note_places(c, "default", [("echo", "m0"), ("echo", "m1")]),
    "mark": lambda c: lanes.mark_lanes(c, "default", dict.fromkeys(KEYS, "max_running")),
    "emptied": lambda c: lanes.mark_emptied(c, KEYS),
}


@pytest.mark.parametrize("name", ROUND)
def test_a_round_reads_little(database: Database, name: str) -> None:
    def ask(connection: Connection) -> None:
        queues.lock_dispatch(connection)
        ROUND[name](connection)

    check_reads_little(explain_plans(database, ask))


def test_reserving_reads_little(database: Database) -> None:
    worker = execute(database, "SELECT id FROM workers LIMIT 1")[0][0]
    planned = [queues.Reservation(task, worker, 1.0) for task in pick(database, "queue_state = 'ready'", 64)]

    def ask(connection: Connection) -> None:
        queues.lock_dispatch(connection)
        queues.reserve_tasks(connection, planned)

    check_reads_little(explain_plans(database, ask))


def insert(connection: Connection, *, agent: str, count: int, exact: bool) -> None:
    requests = [make_echo(agent=agent, text=str(n)) for n in range(count)]
    limits = submissions.Limits(1_000, 100)
    submissions.insert_tasks(connection, requests, limits=limits, max_attempts=1, ttl_seconds=300, exact=exact)


LIVES: dict[str, Callable[[Connection], Any]] = {
    "insert": lambda c: insert(c, agent="agent-7", count=1, exact=False),
    "insert for a new agent": lambda c: insert(c, agent="new", count=1, exact=False),
    "insert at the limit": lambda c: insert(c, agent="greedy", count=1, exact=True),
    "insert a batch": lambda c: insert(c, agent="agent-8", count=100, exact=True),
    "wake": waiting.wake_scheduled,
    "expire": waiting.expire_tasks,
    "settle parents": lambda c: waiting.settle_parents(c, waiting.lock_ended_parents(c)),
    "recheck": queues.recheck_emptied,
    "release": workers.release_tasks,
    "next expiry": workers.find_next_expiry,
    "take": lambda c: pulling.take_task(
        c, c.scalar(text("SELECT id FROM workers LIMIT 1")), type_="echo", agent_id="greedy", channel_id=None
    ),
}


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
@pytest.mark.parametrize("name", LIVES)
def test_submitting_and_sweeping_read_little(database: Database, name: str, mode: str) -> None:
    def ask(connection: Connection) -> None:
        connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        LIVES[name](connection)

    check_reads_little(explain_plans(database, ask))


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_a_workers_statements_read_little(database: Database, mode: str) -> None:
    worker = execute(database, "SELECT id FROM workers LIMIT 1")[0][0]
    reserved = pick(database, f"queue_state = 'reserved' AND worker_id = '{worker}'")
    running = pick(database, f"status = 'in_progress' AND worker_id = '{worker}'")

    def ask(connection: Connection) -> None:
        connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        tasks.claim_tasks(connection, [tasks.Doorbell(task, 1) for task in reserved], worker)
        endings = [tasks.Ending(task, 1, "completed", result={}, usage={"engine_seconds": 1.0}) for task in running]
        tasks.finish_tasks(connection, endings, worker)
        tasks.cancel_tasks(connection, reserved)
        workers.list_held(connection, worker)
        workers.return_reserved(connection, worker)
        workers.renew_lease(connection, worker, lease_seconds=9, model_bytes={}, memory_bytes=0, engine_up=True)

    check_reads_little(explain_plans(database, ask))


def test_only_what_is_ready_is_in_the_ready_indexes(database: Database) -> None:
    counted = "SELECT reltuples FROM pg_class WHERE relname = '{}'"
    ready = execute(database, "SELECT count(*) FROM tasks WHERE queue_state = 'ready'")[0][0]
    assert ready < 0.7 * TASKS

    for index in ("tasks_ready", "tasks_oldest"):
        assert execute(database, counted.format(index))[0][0] == pytest.approx(ready, rel=0.01)


SIZES = """
SELECT relname, pg_total_relation_size(oid) / 8192 AS pages FROM pg_class
WHERE relname = ANY(:tables) ORDER BY relname
"""
DEAD = """
SELECT s.relname FROM pg_stat_user_tables AS s JOIN pg_class AS c ON c.oid = s.relid
WHERE s.relname = ANY(:tables) AND n_dead_tup > (
    SELECT sum(CASE option_name WHEN 'autovacuum_vacuum_threshold' THEN option_value::float8
                    WHEN 'autovacuum_vacuum_scale_factor' THEN option_value::float8 * greatest(c.reltuples, 0) END)
    FROM pg_options_to_table(c.reloptions)
)
"""


def vacuum_as_it_would_run(database: Database) -> None:
    """What autovacuum, when it looks, would choose by the tables' own parameters."""
    with database.statement() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        connection.execute(text("SELECT 1"))
        chosen = connection.scalars(text(DEAD), {"tables": [*STORAGE]}).all()
        for table in chosen:
            connection.execute(text(f"VACUUM {table}"))


def run_through(database: Database, worker: UUID, count: int) -> None:
    """Submit, reserve, claim, finish and delete."""
    own = submit(database, *(make_request("echo", {}, agent_id=f"agent-{n % 40}") for n in range(count)))
    bells = [tasks.Doorbell(task, 1) for task in dispatch(database)]
    assert None not in claim_reserved(database, bells, worker)
    endings = [tasks.Ending(bell.task_id, 1, "completed", result={}, usage={"engine_seconds": 1.0}) for bell in bells]
    assert None not in finish_attempts(database, endings, worker)
    assert len(delete(database, own)) == count


def test_churn_leaves_every_table_as_small_as_it_was(servers: ServerUrls) -> None:
    with own_urls(servers) as urls:
        database = Database(urls.database_url)
        worker = make_worker(database, slots=200)
        sizes = []
        for turn in range(72):
            run_through(database, worker, 300)
            if turn % 4 == 3:
                vacuum_as_it_would_run(database)
            sizes.append(dict(execute(database, SIZES, tables=[*STORAGE])))
        database.close()

    # By then each has been vacuumed, which brings its maps.
    settled, last = sizes[35], sizes[-1]
    grown = {table: (pages, last[table]) for table, pages in settled.items() if last[table] > 1.2 * pages + 4}
    assert not grown
