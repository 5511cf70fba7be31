"""A model that is not here is fetched first: once for everybody, and only where a worker may have it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from bitinglip.domain.models import CopyState
from bitinglip.errors import InfeasibleError
from bitinglip.lifecycle.edit import retry
from bitinglip.lifecycle.explain import explain_task
from bitinglip.lifecycle.fleet import SYSTEM_AGENT
from bitinglip.lifecycle.submit import submit_within
from bitinglip.lifecycle.waiting import settle
from bitinglip.store.database import Database
from bitinglip.store.entries import set_removing
from tests.factories import dispatch, execute, finish, make_echo, make_worker, read
from tests.lifecycle.fetched import (
    ERROR,
    MODEL,
    SETTINGS,
    begin,
    entry_of,
    list_downloads,
    make_download,
    make_fetcher,
    make_puller,
    make_text,
    store,
    submit,
)


def test_a_task_for_a_model_that_is_here_is_ready(database: Database) -> None:
    make_puller(database)
    store(database)

    tasks = submit(database, make_text(), make_text("org/name@main"))

    assert [(found.queue_state, found.model) for found in (read(database, task) for task in tasks)] == [
        ("ready", MODEL),
        ("ready", MODEL),
    ]
    assert list_downloads(database) == []


def test_a_model_that_is_not_here_is_refused_with_the_command_and_what_may_be_fetched(database: Database) -> None:
    make_puller(database, "Qwen/*", "meta/*")

    with pytest.raises(InfeasibleError) as caught:
        submit(database, make_text())

    assert str(caught.value) == (
        "model 'org/name' is not here; fetch it: 'bitinglip model pull org/name' "
        "(by itself pool gpu fetches Qwen/*, meta/*)"
    )
    assert execute(database, "SELECT (SELECT count(*) FROM tasks) + (SELECT count(*) FROM models)") == [(0,)]


def test_a_model_that_could_not_be_fetched_is_refused_with_the_reason(database: Database) -> None:
    make_puller(database)
    execute(
        database,
        "INSERT INTO models (name, source, error) VALUES (:name, 'hub', '{\"message\": \"its owners said no\"}')",
        name=MODEL,
    )

    with pytest.raises(InfeasibleError, match="is not here, and could not be fetched last: its owners said no; fetch"):
        submit(database, make_text())


def test_a_task_waits_for_the_download_of_its_model_whoever_asked_for_it(database: Database) -> None:
    text_worker, worker = make_puller(database), make_fetcher(database)
    (download,) = submit(database, make_download(agent_id="ann"))
    bell = begin(database, worker, download)

    (task,) = submit(database, make_text(agent_id="bob"))

    found = read(database, task)
    assert (found.queue_state, found.depends_on, found.expires_at) == ("blocked", [download], None)
    store(database)
    finish(database, worker, bell, result={})
    settle(database)
    assert dispatch(database) == [task]
    assert read(database, task).worker_id == text_worker


def test_a_model_that_may_be_pulled_is_fetched_once_by_the_system(database: Database) -> None:
    make_puller(database, "org/*")
    make_fetcher(database)

    first = submit(database, make_text(agent_id="ann", priority="high"), make_text(agent_id="ann"))
    second = submit(database, make_text(agent_id="bob"), make_download(agent_id="bob"))

    (download,) = list_downloads(database)
    assert second[1] == download
    assert {tuple(read(database, task).depends_on) for task in [*first, second[0]]} == {(download,)}
    found = read(database, download)
    assert (found.agent_id, found.priority, found.payload) == (SYSTEM_AGENT, "high", {"model": MODEL})
    assert found.expires_at is not None
    assert found.expires_at - found.created_at == timedelta(days=1)
    assert entry_of(database).download_task_id == download
    assert dispatch(database) == [download]


def test_what_the_system_fetches_spends_no_limit_of_the_agent(database: Database) -> None:
    make_puller(database, "*")
    make_fetcher(database)
    execute(database, "INSERT INTO agents (id, max_queued, paused) VALUES ('ann', 2, true)")

    submit(database, make_text(agent_id="ann"), make_text("org/other", agent_id="ann"))

    assert len(list_downloads(database)) == 2
    assert set(dispatch(database)) == set(list_downloads(database))


@pytest.mark.parametrize(
    ("patterns", "limits"),
    [
        (["Org/*", "org/names"], {}),
        (["org/*"], {"allowed_models": ["demo", "other/model"]}),
        (["org/*"], {"allowed_agents": ["ann"]}),
    ],
)
def test_only_a_worker_that_could_do_the_task_has_its_model_fetched(
    database: Database, patterns: list[str], limits: dict[str, Any]
) -> None:
    make_puller(database, *patterns, **limits)
    make_puller(database, name="any")
    make_worker(database, "echo", pulls=["*"])
    make_fetcher(database)

    with pytest.raises(InfeasibleError, match="'bitinglip model pull org/name'"):
        submit(database, make_text(agent_id="bob"))


def test_nothing_is_fetched_where_no_worker_downloads(database: Database) -> None:
    make_puller(database, "*")

    with pytest.raises(InfeasibleError, match=r"is not here; no worker does 'download'; .*'bitinglip worker start"):
        submit(database, make_text())


def test_a_task_whose_model_a_node_fetches_by_itself_is_taken_as_it_is(database: Database) -> None:
    make_puller(database)
    store(database, state=CopyState.DOWNLOADING, done=10)

    (task,) = submit(database, make_text())

    assert read(database, task).queue_state == "ready"


def test_what_is_left_of_a_download_that_failed_is_not_on_its_way(database: Database) -> None:
    make_puller(database)
    store(database, state=CopyState.DOWNLOADING, done=10)
    execute(database, "UPDATE models SET error = '{}'")

    with pytest.raises(InfeasibleError):
        submit(database, make_text())


def test_a_model_that_is_being_removed_is_not_here(database: Database) -> None:
    make_puller(database)
    store(database)
    with database.transaction() as connection:
        set_removing(connection, MODEL)

    with pytest.raises(InfeasibleError, match="model 'org/name' is not here"):
        submit(database, make_text())


def test_with_no_worker_a_task_is_taken_and_waits_for_a_download_if_there_is_one(database: Database) -> None:
    first, second = submit(database, make_text("org/unknown"), make_text())
    (download,) = submit(database, make_download())
    (third,) = submit(database, make_text())

    assert [read(database, task).depends_on for task in (first, second, third)] == [[], [], [download]]


def test_a_download_and_what_needs_it_are_submitted_together(database: Database) -> None:
    make_puller(database)
    make_fetcher(database)
    download, task = make_download(), make_text()

    assert submit(database, download, task) == [download.id, task.id]

    assert read(database, task.id).depends_on == [download.id]
    with pytest.raises(InfeasibleError):
        submit(database, make_text("org/other"), make_download("org/other"))


def test_parents_of_its_own_stay_with_the_download(database: Database) -> None:
    make_puller(database, "*")
    make_fetcher(database)
    make_worker(database, "echo")
    parent = make_echo()

    submit(database, parent, make_text(depends_on=[parent.id]))

    task = execute(database, "SELECT id FROM tasks WHERE type = 'text'")[0].id
    assert read(database, task).depends_on == [parent.id, *list_downloads(database)]


def test_a_key_that_recorded_a_task_fetches_nothing_again(database: Database) -> None:
    make_puller(database, "*")
    make_fetcher(database)
    request = make_text(idempotency_key="k")
    first = submit(database, request)
    execute(database, "DELETE FROM models")

    assert submit(database, make_text(idempotency_key="k")) == first

    assert len(list_downloads(database)) == 1


def test_a_local_folder_and_a_model_that_is_held_need_no_download(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_puller(database, models=["org/held"])
    (tmp_path / "org" / "local").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    tasks = submit(database, make_text("org/local"), make_text("org/held"), make_text("demo"))

    assert {read(database, task).queue_state for task in tasks} == {"ready"}


def test_fifty_tasks_for_a_missing_model_at_once_cause_one_download(database: Database) -> None:
    make_puller(database, "org/*")
    make_fetcher(database)
    opened = [Database(database.url.render_as_string(hide_password=False), connections=1) for _ in range(10)]
    start = threading.Barrier(10)

    def ask(number: int) -> None:
        start.wait()
        for turn in range(5):
            submit(opened[number], make_text(agent_id=f"agent-{turn}"), make_text("org/b", agent_id=f"agent-{turn}"))

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(ask, range(10)))
    for own in opened:
        own.close()

    assert len(list_downloads(database)) == 2
    blocked = "SELECT count(*) FROM tasks WHERE type = 'text' AND queue_state = 'blocked'"
    assert execute(database, blocked) == [(100,)]


def test_a_recurring_task_waits_for_its_model_and_is_never_refused(database: Database) -> None:
    make_puller(database, "org/*")
    make_fetcher(database)

    with database.transaction() as connection:
        pulled = submit_within(connection, make_text(), SETTINGS)
        refused = submit_within(connection, make_text("other/name"), SETTINGS)

    (download,) = list_downloads(database)
    assert read(database, pulled).depends_on == [download]
    assert read(database, refused).queue_state == "ready"


def test_a_model_that_has_come_since_the_last_look_is_not_waited_for(database: Database) -> None:
    make_puller(database, "*")
    make_fetcher(database)
    submit(database, make_text("demo"))
    store(database)

    (task,) = submit(database, make_text())

    assert read(database, task).queue_state == "ready"
    assert list_downloads(database) == []


def test_models_that_are_here_cost_a_submission_nothing(database: Database) -> None:
    make_puller(database)
    store(database)
    submit(database, make_text())
    asked: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *event: asked.append(event[2]))
    submit(database, make_text("demo"))
    plain = len(asked)

    submit(database, make_text())

    assert len(asked) == 2 * plain


def test_tasks_whose_model_could_not_be_fetched_fail_with_the_reason_and_can_be_retried(database: Database) -> None:
    make_puller(database)
    worker = make_fetcher(database)
    (download,) = submit(database, make_download())
    (task,) = submit(database, make_text())

    finish(database, worker, begin(database, worker, download), "failed", error=ERROR)
    settle(database)

    error = read(database, task).error
    assert error is not None
    assert error.code == "dependency_failed"
    assert (
        error.message == f"task {download}, which it depends on, failed: {ERROR['message']}; retry that one, then this"
    )
    retry(database, [download])
    retry(database, [task])
    assert read(database, task).queue_state == "blocked"
    assert submit(database, make_download()) == [download]


def test_a_long_reason_is_cut_and_a_missing_one_left_out(database: Database) -> None:
    make_puller(database)
    worker = make_fetcher(database)
    downloads = [submit(database, make_download(name))[0] for name in ("org/a", "org/b")]
    tasks = [submit(database, make_text(name))[0] for name in ("org/a", "org/b")]

    finish(database, worker, begin(database, worker, downloads[0]), "failed", error={**ERROR, "message": "x" * 2_000})
    finish(database, worker, begin(database, worker, downloads[1]), "failed", error={"code": "odd"})
    settle(database)

    messages = [error.message for task in tasks if (error := read(database, task).error)]
    assert messages[0].count("x") < 600
    assert messages[1] == f"task {downloads[1]}, which it depends on, failed; retry that one, then this"


def test_an_explanation_names_the_download_and_how_far_it_is(database: Database) -> None:
    make_puller(database)
    worker = make_fetcher(database)
    (download,) = submit(database, make_download())
    (task,) = submit(database, make_text())
    waiting = explain_task(database, task, swap_seconds=10)
    begin(database, worker, download)
    store(database, state=CopyState.DOWNLOADING, done=430)

    found = explain_task(database, task, swap_seconds=10)

    assert waiting.message == f"it depends on {download} (the download of model 'org/name', pending)"
    assert found.message == f"it depends on {download} (the download of model 'org/name', 43% done)"
    assert found.details["parents"][0]["progress"] == 0.43
    assert "43% done" in explain_task(database, download, swap_seconds=10).message
