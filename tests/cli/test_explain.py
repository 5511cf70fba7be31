"""`task explain`, `submit --quote`, `stats --calibration`, and the parts of the workers that agents had."""

import json
import signal

import pytest

from bitinglip.client import Client
from bitinglip.client.manager import TaskManager
from bitinglip.domain.task import make_request
from bitinglip.lifecycle.agents import edit_agent, pause_agent
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.store.tasks import Doorbell
from tests.cli.conftest import Run, Start, read_lines
from tests.factories import dispatch, execute, finish, make_echo, make_running, make_worker, submit


def know_costs(database: Database) -> None:
    execute(database, "INSERT INTO costs VALUES ('default', 'echo', '', '', 100, 2, 10, 1, 1, now())")


def use(database: Database, agent: str, *, cost: float, minutes_ago: int = 1) -> None:
    sql = "INSERT INTO agent_usage VALUES (now() - make_interval(mins => :m), 'default', :agent, 1, :cost, :cost, 7)"
    execute(database, sql, agent=agent, cost=cost, m=minutes_ago)


def test_explain_says_why_in_a_sentence_and_in_numbers(run: Run, client: Client, database: Database) -> None:
    make_worker(database, "w", slots=1)
    tasks = submit(database, *(make_echo(agent="bot") for _ in range(4)))
    dispatch(database)

    document = json.loads(run("task", "explain", str(tasks[3]), "--json").stdout)
    lines = run("task", "explain", str(tasks[3])).stdout.splitlines()

    assert (document["id"], document["code"], document["position"]) == (str(tasks[3]), "older_first", 1)
    assert document["details"]["slots"] == 1
    assert document["release"] == "the end of what goes before it"
    assert lines[0] == "1 older task of agent 'bot' goes before it; the only slot of w is taken."
    assert ["code", "older_first"] in [line.split() for line in lines]


def test_explain_of_an_unknown_task_exits_with_3(run: Run, client: Client) -> None:
    assert run("task", "explain", "01890a5d-ac96-774b-bcce-b302099a8057").exit_code == 3
    assert run("task", "explain", "seventeen").exit_code == 3


def test_explain_gives_times_and_ids_as_json(run: Run, client: Client, database: Database) -> None:
    parent = make_running(database, make_worker(database))
    child = client.submit("echo", depends_on=[parent.task_id])

    blocked = json.loads(run("task", "explain", str(child.id), "--json").stdout)
    running = json.loads(run("task", "explain", str(parent.task_id), "--json").stdout)

    standing = {"type": "echo", "status": "in_progress", "queue_state": None}
    assert blocked["details"]["parents"] == [{"id": str(parent.task_id), **standing}]
    assert running["details"]["since"].startswith("20")


KINDS = {
    "echo": ("echo", "hello"),
    "text": ("text", "What is the capital of Peru?", "--max-tokens", "7"),
    "agent": ("agent", "Write the minutes", "--payload", '{"meeting": 17}'),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_quote_records_nothing(run: Run, client: Client, database: Database, kind: str) -> None:
    make_worker(database, kinds=("echo", "text"))

    result = run("submit", *KINDS[kind], "--agent", "bot", "--priority", "high", "--quote", "--json")

    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["feasible"] is True
    assert document["code"] == ("agent_takes_it" if kind == "agent" else "no_dispatcher")
    assert execute(database, "SELECT count(*) FROM tasks") == [(0,)]
    assert execute(database, "SELECT count(*) FROM agents") == [(0,)]


def test_a_quote_foretells_the_wait(run: Run, client: Client, database: Database) -> None:
    make_worker(database, slots=1)
    know_costs(database)
    submit(database, *(make_echo(agent="bot") for _ in range(12)))
    dispatch(database)

    document = json.loads(run("submit", "echo", "--agent", "bot", "--quote", "--json").stdout)
    lines = run("submit", "echo", "--agent", "bot", "--quote").stdout.splitlines()

    assert (document["position"], document["engine_seconds"], document["pool"]) == (10, 2.0, "default")
    assert 90 < document["wait_p50_seconds"] < document["wait_p90_seconds"] < 250
    assert lines[0].startswith("If it were submitted now: 10 older tasks of agent 'bot' go before it")
    assert ["position", "10"] in [line.split() for line in lines]


def test_what_is_refused_is_not_quoted(run: Run, client: Client, database: Database) -> None:
    make_worker(database, kinds=("text",))

    refused = run("submit", "echo", "--quote", "--json")

    assert (refused.exit_code, refused.stdout) == (4, "")
    assert "no worker does 'echo'" in refused.stderr
    assert run("submit", "text", "hi", "--max-tokens", "0", "--quote").exit_code == 2
    assert run("submit", "text", "hi", "--after", "seventeen", "--quote").exit_code == 3
    assert run("submit", "text", "hi", "--model", "none-such", "--quote").exit_code == 3


def test_a_quote_waits_for_nothing(run: Run, client: Client) -> None:
    result = run("submit", "echo", "--quote", "--wait")
    assert result.exit_code == 2
    assert "--quote, --wait and --follow exclude each other" in result.stderr


def test_programs_ask_the_client(client: Client, urls: ServerUrls, database: Database) -> None:
    (task,) = submit(database)
    request = make_request("echo", {}, agent_id="bot")
    with TaskManager(urls.database_url, urls.redis_url) as tasks:
        assert tasks.explain(task) == client.explain(str(task))
        assert tasks.quote(request) == client.quote(request)
    assert client.quote(request).code == client.explain(task).code == "no_worker"


def test_calibration_is_one_document(run: Run, client: Client, database: Database) -> None:
    task = make_running(database, make_worker(database))
    execute(
        database,
        "INSERT INTO quotes SELECT id, started_at - interval '5 s', 10, 20, 3 FROM tasks WHERE id = :id",
        id=task.task_id,
    )

    document = json.loads(run("stats", "--calibration", "--json").stdout)

    assert document == {
        "quotes": 1,
        "started": 1,
        "within_p50": 1.0,
        "within_p90": 1.0,
        "median_error_seconds": 5.0,
        "median_engine_ratio": None,
    }
    assert "within p90" in run("stats", "--calibration").stdout


def test_a_queue_shows_the_part_that_its_agent_had_and_was_due(run: Run, client: Client, database: Database) -> None:
    edit_agent(database, "heavy", weight=3)
    use(database, "heavy", cost=10)
    use(database, "light", cost=30)
    use(database, "light", cost=1_000, minutes_ago=61)
    worker = make_worker(database)
    make_running(database, worker, make_echo(agent="heavy"))
    submit(database, make_echo(agent="light"), make_echo(agent="light"))
    parent = submit(database, make_echo(agent="light", priority="high"))[0]
    client.submit("echo", agent="light", depends_on=[parent])
    execute(database, "UPDATE tasks SET created_at = now() - interval '1 minute' WHERE queue_state = 'ready'")
    execute(database, "INSERT INTO lanes VALUES ('default', 'echo', '', 'light', 'medium', 0)")

    queues = {(q["agent_id"], q["priority"]): q for q in read_lines(run("queue", "list", "--json").stdout)}

    heavy, light = queues["heavy", "medium"], queues["light", "medium"]
    assert (heavy["weight"], heavy["share"], heavy["due_share"]) == (3, 0.25, 0.75)
    assert (light["share"], light["due_share"]) == (0.75, 0.25)
    assert (heavy["ready"], heavy["running"], heavy["longest_wait_seconds"]) == (0, 1, None)
    assert (light["ready"], light["later"], light["reserved"], light["running"]) == (2, 1, 0, 0)
    assert 60 <= light["longest_wait_seconds"] < 90
    assert queues["light", "high"]["ready"] == 1
    assert "75.0%" in run("queue", "list").stdout


def test_queues_of_one_agent_are_listed_by_model(run: Run, client: Client, database: Database) -> None:
    submit(
        database, *(make_request("text", {"prompt": "hi"}, model=model, agent_id="bot") for model in ("a", "b", "b"))
    )

    queues = read_lines(run("queue", "list", "--json").stdout)

    assert [(q["model"], q["ready"]) for q in queues] == [("a", 1), ("b", 2)]


def test_what_is_not_served_says_why(run: Run, client: Client, database: Database) -> None:
    make_worker(database)
    edit_agent(database, "busy", max_running=1)
    edit_agent(database, "idle")
    submit(database, *(make_echo(agent=agent) for agent in ("busy", "busy", "free", "paused", "picky")))
    pause_agent(database, "paused")
    dispatch(database)
    execute(database, "INSERT INTO lanes VALUES ('default', 'echo', '', 'picky', 'medium', 0, 'again')")

    agents = {a["id"]: a for a in read_lines(run("agent", "list", "--json").stdout)}
    queues = {q["agent_id"]: q["closed"] for q in read_lines(run("queue", "list", "--json").stdout)}

    assert {name: agent["closed"] for name, agent in agents.items()} == {
        "busy": "max_running",
        "free": None,
        "idle": None,
        "paused": "paused",
        "picky": None,
    }
    assert queues == {"busy": "max_running", "free": None, "paused": "paused", "picky": None}
    assert (agents["busy"]["max_running"], agents["busy"]["reserved"], agents["busy"]["pending"]) == (1, 1, 2)
    assert agents["idle"]["due_share"] is None
    assert agents["busy"]["longest_wait_seconds"] >= 0


def test_an_agent_shows_what_it_used_of_its_budget_today(run: Run, client: Client, database: Database) -> None:
    worker = make_worker(database)
    edit_agent(database, "bot", daily_seconds=100)
    submit(database, make_echo(agent="bot"))
    (task,) = dispatch(database)
    execute(database, "UPDATE tasks SET status = 'in_progress', queue_state = NULL, started_at = now()")
    finish(database, worker, Doorbell(task, 1), result={}, usage={"engine_seconds": 12})
    dispatch(database)

    (agent,) = read_lines(run("agent", "list", "--json").stdout)

    assert "12 of 100" in run("agent", "list").stdout
    assert (agent["daily_seconds"], agent["spent_seconds"], agent["share"]) == (100, 12, 1)
    execute(database, "UPDATE agents SET spent_on = spent_on - 1")
    assert read_lines(run("agent", "list", "--json").stdout)[0]["spent_seconds"] == 0


def test_a_long_list_says_that_there_is_more(run: Run, client: Client, database: Database) -> None:
    submit(database, *(make_echo(agent=f"bot-{n}") for n in range(3)))

    result = run("queue", "list", "--limit", "2", "--json")

    assert [q["agent_id"] for q in read_lines(result.stdout)] == ["bot-0", "bot-1"]
    assert "there may be more" in result.stderr
    assert len(read_lines(run("agent", "list", "--limit", "2", "--json").stdout)) == 2
    assert run("queue", "list", "--limit", "4").stderr == ""


def test_agents_are_watched_until_it_is_interrupted(start: Start, client: Client) -> None:
    client.submit("echo", agent="bot")
    process = start("agent", "list", "--watch", "--json")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["pending"] == 1
    client.submit("echo", agent="bot")
    assert json.loads(process.stdout.readline())["pending"] == 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in errors
