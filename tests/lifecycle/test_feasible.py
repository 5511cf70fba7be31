"""What no worker could ever do is refused when it is submitted; whatever one might do is accepted."""

import uuid
from pathlib import Path

import pytest
from sqlalchemy import event

from bitinglip.domain.task import TaskRequest, make_request
from bitinglip.errors import InfeasibleError
from bitinglip.lifecycle import feasible
from bitinglip.lifecycle.feasible import check_feasible
from bitinglip.lifecycle.submit import submit_tasks
from bitinglip.settings import TaskSettings
from bitinglip.store.database import Database
from tests.conftest import eventually
from tests.factories import execute, make_echo, make_worker, submit

GB = 10**9


def make_text(model: str = "m", **fields: str) -> TaskRequest:
    return make_request("text", {"prompt": "Hello"}, model=model, **fields)


def know_model(database: Database, name: str = "m", *, held: int | None = None, weights: int | None = None) -> None:
    sql = "INSERT INTO models (name, held_bytes, weight_bytes) VALUES (:name, :held, :weights)"
    execute(database, sql, name=name, held=held, weights=weights)


def leave(database: Database, worker: uuid.UUID, *, minutes: float) -> None:
    sql = "UPDATE workers SET state = 'gone', last_seen_at = now() - make_interval(secs => :s) WHERE id = :id"
    execute(database, sql, id=worker, s=60 * minutes)


def is_refused(database: Database, *requests: TaskRequest) -> bool:
    """Whether a process that has not looked before refuses them."""
    own = Database(database.url.render_as_string(hide_password=False), connections=1)
    try:
        submit_tasks(own, requests, TaskSettings())
    except InfeasibleError:
        return True
    finally:
        own.close()
    return False


def count_tasks(database: Database) -> int:
    return int(execute(database, "SELECT count(*) FROM tasks")[0][0])


def test_a_type_that_no_worker_does_is_refused_with_what_the_workers_do(database: Database) -> None:
    make_worker(database, "a")
    make_worker(database, "b", kinds=["image", "echo"])

    message = (
        r"^no worker does 'text'; the workers here do echo, image; start one .*'bitinglip worker start --pool POOL'"
    )
    with pytest.raises(InfeasibleError, match=message) as caught:
        submit(database, make_echo(), make_text())

    assert (caught.value.code, caught.value.exit_code) == ("infeasible", 4)
    assert (caught.value.type, caught.value.model) == ("text", "m")
    assert count_tasks(database) == 0


def test_with_no_worker_everything_is_accepted(database: Database) -> None:
    know_model(database, weights=14 * GB)
    leave(database, make_worker(database, memory_limit_bytes=GB), minutes=1)

    submit(database, make_text(), make_echo())

    assert count_tasks(database) == 2


def test_a_model_that_fits_nowhere_is_refused_with_the_numbers(database: Database) -> None:
    know_model(database, held=14_200_000_000, weights=7 * GB)
    make_worker(database, "small", kinds=["text"], memory_limit_bytes=4 * GB)
    make_worker(database, "large", kinds=["text"], memory_limit_bytes=8 * GB)
    make_worker(database, "other", kinds=["echo"], memory_limit_bytes=80 * GB)

    message = r"^model 'm' needs 14\.2 GB, the largest of 2 workers holds 8 GB; use a smaller model, or start a worker"
    with pytest.raises(InfeasibleError, match=message):
        submit(database, make_text())

    submit(database, make_text("unknown"))


def test_a_model_fits_where_one_worker_has_room_on_all_its_gpus_or_no_limit_or_holds_it(database: Database) -> None:
    know_model(database, weights=14 * GB)
    make_worker(database, "small", kinds=["text"], memory_limit_bytes=8 * GB)
    assert is_refused(database, make_text())

    gpus = [{"index": number} for number in range(2)]
    pair = make_worker(database, "pair", kinds=["text"], memory_limit_bytes=8 * GB, gpus=gpus)
    assert not is_refused(database, make_text())
    execute(database, "DELETE FROM workers WHERE id = :id", id=pair)
    cpu = make_worker(database, "cpu", kinds=["text"])
    assert not is_refused(database, make_text())
    execute(database, "DELETE FROM workers WHERE id = :id", id=cpu)
    assert is_refused(database, make_text())
    make_worker(database, "holds", kinds=["text"], memory_limit_bytes=8 * GB, models=["m"])
    assert not is_refused(database, make_text())


def test_the_size_of_a_model_that_no_worker_has_seen_is_that_of_its_folder(database: Database, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"part-{number}.safetensors").write_bytes(bytes(1_000_000))
    make_worker(database, kinds=["text"], memory_limit_bytes=1_500_000)

    with pytest.raises(InfeasibleError, match=r"needs 2 MB, the only worker for it holds 1\.5 MB;"):
        submit(database, make_text(str(tmp_path)))


def test_an_agent_or_a_model_that_no_worker_allows_is_refused_with_those_it_does(database: Database) -> None:
    worker = make_worker(database, kinds=["text"])
    sql = "UPDATE workers SET allowed_agents = '{ann,bob}', allowed_models = '{m,n}' WHERE id = :id"
    execute(database, sql, id=worker)

    with pytest.raises(InfeasibleError, match=r"'text' serves agent 'eve', only ann, bob; allow it in pools\.toml"):
        submit(database, make_text(agent_id="ann"), make_text(agent_id="eve"))
    with pytest.raises(InfeasibleError, match=r"may load model 'x', only m, n; allow it in pools\.toml"):
        submit(database, make_text("x", agent_id="bob"))
    submit(database, make_text(agent_id="ann"), make_text("n", agent_id="bob"))


def test_agents_own_work_needs_no_worker(database: Database) -> None:
    make_worker(database)

    submit(database, make_request("agent", {}, title="Call them back"))


def test_a_worker_that_drains_or_left_a_short_while_ago_still_counts(database: Database) -> None:
    make_worker(database)
    text = make_worker(database, "text", kinds=["text"])
    execute(database, "UPDATE workers SET state = 'draining' WHERE id = :id", id=text)
    assert not is_refused(database, make_text())
    leave(database, text, minutes=9)
    assert not is_refused(database, make_text())
    leave(database, text, minutes=11)
    assert is_refused(database, make_text())


def test_a_worker_that_came_back_with_other_types_is_what_it_is_now(database: Database) -> None:
    make_worker(database, "same", kinds=["text"])
    make_worker(database, "same", kinds=["echo"])

    assert is_refused(database, make_text())


def test_somebody_who_takes_tasks_himself_is_no_worker(database: Database) -> None:
    make_worker(database, kinds=["agent"], state="pulling")

    submit(database, make_text())


def test_what_a_key_has_recorded_is_found_again_whatever_the_workers_are_now(database: Database) -> None:
    request = make_text(idempotency_key="k")
    known = submit(database, request)
    make_worker(database)

    assert not is_refused(database, make_text(idempotency_key="k"))
    assert is_refused(database, make_text(idempotency_key="new"))
    assert submit_tasks(database, [make_text(idempotency_key="k")], TaskSettings()) == known


def test_nothing_is_refused_by_an_old_picture(database: Database) -> None:
    make_worker(database)
    submit(database, make_echo())
    make_worker(database, "new", kinds=["text"])

    submit(database, make_text())


def test_while_the_picture_is_fresh_a_submission_asks_nothing_more(database: Database) -> None:
    make_worker(database)
    asked: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *event: asked.append(event[2]))
    check_feasible(database, [make_echo()])
    first = len(asked)

    for number in range(100):
        check_feasible(database, [make_echo(agent=f"bot-{number}")])

    assert first > 0
    assert len(asked) == first


def test_the_picture_is_taken_again_when_it_is_old(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasible, "FRESH_SECONDS", 0.1)
    check_feasible(database, [make_text()])
    make_worker(database)

    def is_noticed() -> bool:
        try:
            check_feasible(database, [make_text()])
        except InfeasibleError:
            return True
        return False

    eventually(is_noticed)
