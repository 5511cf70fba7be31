"""What a worker reads when it starts, and what it says when that is wrong."""

from pathlib import Path

import pytest

from bitinglip.celery_app import find_config
from bitinglip.errors import ConfigurationError
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.worker.celery import find_spec
from tests.conftest import REPOSITORY, System, eventually, forget_settings, make_celery_app, wait_for_workers
from tests.factories import execute

ECHO = '[pools.default]\nkinds = ["echo"]\ngpus = []\nslots = 2\n'


def test_a_plain_celery_worker_prints_which_configuration_it_read(processes: System, database: Database) -> None:
    processes.start_worker()
    wait_for_workers(database, 1)

    log = processes.read_log("worker")
    assert f"configuration {REPOSITORY / 'celeryconfig.py'}" in log
    assert "worker.pools.toml" in log
    name, pool, slots, kinds = execute(database, "SELECT name, pool, slots, kinds FROM workers")[0]
    assert (name.partition("@")[0], pool, slots, kinds) == ("worker", "default", 8, ["echo"])


def test_a_worker_says_what_its_pool_allows_and_how_it_counts(processes: System, database: Database) -> None:
    policy = "models = ['demo']\nagents = ['a', 'b']\nspeed = 2.5\ncharge = 'tokens'\n"
    processes.start_worker("strict", pools=ECHO + policy)
    processes.start_worker("plain", pools=ECHO)
    wait_for_workers(database, 2)

    rows = execute(database, "SELECT allowed_models, allowed_agents, speed, charge FROM workers ORDER BY name DESC")
    assert [tuple(row) for row in rows] == [(["demo"], ["a", "b"], 2.5, "tokens"), (None, None, 1.0, "seconds")]


def test_another_configuration_can_be_named(processes: System, database: Database, tmp_path: Path) -> None:
    config = tmp_path / "mine.py"
    config.write_text((REPOSITORY / "celeryconfig.py").read_text() + "\nworker_proc_alive_timeout = 33\n")

    processes.start_worker(environment={"BITINGLIP_CELERY_CONFIG": str(config)})

    eventually(lambda: f"configuration {config}" in processes.read_log("worker"))


def test_the_configuration_of_the_environment_is_the_applications(
    urls: ServerUrls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "mine.py"
    config.write_text("worker_proc_alive_timeout = 33\nbroker_url = 'redis://elsewhere'\n")
    monkeypatch.setenv("BITINGLIP_CELERY_CONFIG", str(config))

    app = make_celery_app()

    assert app.conf.worker_proc_alive_timeout == 33
    assert app.conf.broker_url == urls.redis_url


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITINGLIP_CELERY_CONFIG", str(tmp_path / "missing.py"))

    with pytest.raises(ConfigurationError, match=r"BITINGLIP_CELERY_CONFIG is '.*missing.py': no such file"):
        find_config()


def test_the_shipped_configuration_keeps_the_decisions(urls: ServerUrls) -> None:
    conf = make_celery_app().conf

    assert conf.worker_pool == "threads"
    assert conf.task_acks_late
    assert conf.worker_prefetch_multiplier == 1
    assert conf.broker_transport_options["ack_emulation"] is False
    assert conf.accept_content == ["json"]


@pytest.mark.parametrize(
    ("pools", "complaint"),
    [
        (ECHO + "slotz = 3\n", "slotz is unknown; the keys of a pool are kinds"),
        ("[pools.default]\nkinds = []\n", "kinds"),
        ("[pools.default]\nkinds = ['telepathy']\n", "'telepathy' is no kind of task; choose from"),
        (ECHO.replace("2", "0"), "slots is 0"),
        (ECHO.replace("2", "-1"), "slots is -1: input should be greater than or equal to 1"),
        (ECHO + "speed = 0\n", "speed is 0: input should be greater than 0"),
        (ECHO + "speed = -2.5\n", "speed is -2.5: input should be greater than 0"),
        (ECHO + "speed = nan\n", "speed is nan: input should be a finite number"),
        (ECHO + "speed = inf\n", "speed is inf: input should be a finite number"),
        (ECHO + "charge = 'euros'\n", "charge is 'euros': input should be 'seconds', 'tokens' or 'tasks'"),
        (ECHO + "models = []\n", "models is []: it allows none; name at least one, or leave the key out"),
        (ECHO + "agents = []\n", "agents is []: it allows none; name at least one, or leave the key out"),
        (ECHO + "agents = ['a', '']\n", "agents is ['a', '']: it has an empty name"),
        (ECHO + "agents = 'a'\n", "agents is 'a': input should be a valid list"),
        (ECHO + "models = ['m']\npreload = ['demo']\n", "preload names 'demo', which is not among its models (m)"),
        (ECHO.replace("gpus = []", "gpus = [1, 0, 1]"), "gpus is [1, 0, 1]: it lists GPU 1 twice; name each GPU once"),
        (ECHO.replace("gpus = []", "gpus = [-1]"), "gpus is [-1]: it must be 'all' or a list of indexes from 0"),
        (ECHO.replace("gpus = []", "gpus = [true]"), "gpus is [True]: it must be 'all' or a list of indexes from 0"),
        (ECHO.replace("gpus = []", "gpus = 'some'"), "gpus is 'some': it must be 'all' or a list of indexes from 0"),
        ("[pools", "it must be TOML"),
        ("", "pools"),
        ("[pools]\n", "pools"),
        ("[[pools]]\n", "pools"),
    ],
)
def test_a_worker_names_what_is_wrong_in_its_pools_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pools: str, complaint: str
) -> None:
    file = tmp_path / "pools.toml"
    file.write_text(pools)
    monkeypatch.setenv("BITINGLIP_POOLS_FILE", str(file))
    forget_settings()

    with pytest.raises(ConfigurationError) as caught:
        find_spec()

    assert complaint in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("BITINGLIP_POOL", "nowhere", "pool 'nowhere' is not in pools.toml; choose from default"),
        ("BITINGLIP_WORKER_NUMBER", "1", "BITINGLIP_WORKER_NUMBER is '1'; pool 'default' has 1 worker"),
        ("BITINGLIP_WORKER_NUMBER", "-1", "BITINGLIP_WORKER_NUMBER is '-1'; pool 'default' has 1 worker"),
        ("BITINGLIP_WORKER_NUMBER", "x", "BITINGLIP_WORKER_NUMBER is 'x'; pool 'default' has 1 worker"),
        ("BITINGLIP_POOLS_FILE", "/missing/pools.toml", "BITINGLIP_POOLS_FILE is '/missing/pools.toml'"),
    ],
)
def test_a_worker_names_the_variable_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    file = tmp_path / "pools.toml"
    file.write_text(ECHO)
    monkeypatch.setenv("BITINGLIP_POOLS_FILE", str(file))
    monkeypatch.setenv(name, value)
    forget_settings()

    with pytest.raises(ConfigurationError) as caught:
        find_spec()

    assert complaint in str(caught.value)


def test_a_worker_with_a_bad_pools_file_ends_with_its_code_and_no_traceback(processes: System) -> None:
    processes.start_worker(pools="[pools.default]\nkinds = ['echo']\nslotz = 1\n")

    assert processes.wait("worker") == 2
    log = processes.read_log("worker")
    assert "slotz is unknown" in log
    assert "Traceback" not in log
