"""GPUs are asked of the driver, shared out over a pool's workers, and pinned by UUID."""

import sys
from types import SimpleNamespace

import pytest

from bitinglip.errors import ConfigurationError
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from bitinglip.worker.hardware import Gpu, find_gpus
from bitinglip.worker.pools import Pool, plan_workers
from tests.conftest import System, wait_for_workers
from tests.factories import execute

GIB = 2**30


class NVMLError(Exception):
    """As nvidia-ml-py names it."""


def make_driver(count: int, *, as_bytes: bool = False) -> SimpleNamespace:
    """The module `pynvml` of a machine with so many GPUs."""
    encode = str.encode if as_bytes else str
    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda index: encode(f"GPU-{index}"),
        nvmlDeviceGetName=lambda _: encode("H200"),
        nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(total=(index + 1) * 10 * GIB),
    )


def make_gpus(count: int) -> list[Gpu]:
    return [Gpu(index, f"GPU-{index}", "H200", (index + 1) * 10 * GIB) for index in range(count)]


def make_pool(**fields: object) -> dict[str, Pool]:
    return {"p": Pool.model_validate({"kinds": ["echo"], **fields})}


@pytest.mark.parametrize("as_bytes", [False, True])
def test_the_driver_names_every_gpu(monkeypatch: pytest.MonkeyPatch, as_bytes: bool) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", make_driver(2, as_bytes=as_bytes))

    assert find_gpus() == make_gpus(2)


def test_a_machine_without_the_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make_driver(1)

    def fail() -> None:
        raise NVMLError

    driver.nvmlInit = fail
    monkeypatch.setitem(sys.modules, "pynvml", driver)

    assert find_gpus() == []


def test_a_machine_without_the_library_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert find_gpus() == []


def test_each_gpu_has_a_worker() -> None:
    workers = plan_workers("p", make_pool(), make_gpus(3))

    assert [(worker.number, [gpu.index for gpu in worker.gpus]) for worker in workers] == [(0, [0]), (1, [1]), (2, [2])]


def test_a_worker_may_have_several_gpus_and_a_budget_that_fits_the_smallest() -> None:
    workers = plan_workers("p", make_pool(gpus_per_worker=2, memory_share=0.5), make_gpus(5))

    assert [[gpu.index for gpu in worker.gpus] for worker in workers] == [[0, 1], [2, 3]]
    assert [worker.memory_limit_bytes for worker in workers] == [5 * GIB, 15 * GIB]


def test_a_pool_may_name_its_gpus() -> None:
    workers = plan_workers("p", make_pool(gpus=[2, 0]), make_gpus(3))

    assert [worker.gpus[0].uuid for worker in workers] == ["GPU-2", "GPU-0"]


@pytest.mark.parametrize(("pool", "gpus"), [(make_pool(), 0), (make_pool(gpus=[]), 4)])
def test_without_a_gpu_one_worker_runs_on_the_cpu(pool: dict[str, Pool], gpus: int) -> None:
    workers = plan_workers("p", pool, make_gpus(gpus))

    assert [(worker.gpus, worker.memory_limit_bytes) for worker in workers] == [((), None)]


@pytest.mark.parametrize(
    ("pool", "complaint"),
    [
        (make_pool(gpus=[7]), "pool 'p' names GPU 7, this machine has 0"),
        (make_pool(gpus_per_worker=2), "pool 'p' needs 2 GPUs for a worker, this machine has 1"),
    ],
)
def test_a_gpu_that_is_not_there_is_named(pool: dict[str, Pool], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        plan_workers("p", pool, make_gpus(1))


@pytest.mark.parametrize("fields", [{"gpus": [0, 0]}, {"gpus": [0, 1, 2], "gpus_per_worker": 2}, {"gpus": "some"}])
def test_gpus_that_cannot_be_shared_out_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="gpus"):
        make_pool(**fields)


def test_a_worker_sees_only_its_own_gpu(processes: System, database: Database, urls: ServerUrls) -> None:
    fake = processes.folder / "driver"
    fake.mkdir()
    (fake / "pynvml.py").write_text(
        "from types import SimpleNamespace\n"
        "class NVMLError(Exception): pass\n"
        "def nvmlInit(): pass\n"
        "def nvmlShutdown(): pass\n"
        "def nvmlDeviceGetCount(): return 2\n"
        "def nvmlDeviceGetHandleByIndex(index): return index\n"
        "def nvmlDeviceGetHandleByUUID(uuid): return int(uuid[-1])\n"
        "def nvmlDeviceGetUUID(index): return f'GPU-{index}'\n"
        "def nvmlDeviceGetName(index): return 'H200'\n"
        "def nvmlDeviceGetMemoryInfo(index): return SimpleNamespace(total=1000, used=0)\n"
        "def nvmlDeviceGetComputeRunningProcesses(index): return []\n"
    )
    processes.start_worker(
        pools='[pools.default]\nkinds = ["echo"]\nslots = 1\n',
        environment={"PYTHONPATH": str(fake), "BITINGLIP_WORKER_NUMBER": "1"},
    )
    wait_for_workers(database, 1)

    import psutil

    gpus, limit = execute(database, "SELECT gpus, memory_limit_bytes FROM workers")[0]
    assert ([gpu["uuid"] for gpu in gpus], limit) == (["GPU-1"], 900)
    children = psutil.Process(processes.processes["worker"].pid).children()
    engine = next(child for child in children if "bitinglip.engine.host" in child.cmdline())
    assert engine.environ()["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert '"devices": ["cuda:0"]' in engine.cmdline()[-1]
