"""Which process is which: a worker's engine, its supervisor, the dispatchers and servers beside it.

Only children of a process that starts them again count: a kill must not need a person.
"""

import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bitinglip.chaos.watch import WorkerState
from bitinglip.settings import find_node_name

DISPATCHER = "bitinglip.dispatcher"
ENGINE = "bitinglip.engine.host"
POSTGRES = ("postgres",)
REDIS = ("valkey-server", "redis-server")
_PARENT_COMMANDS = ({"worker", "start"}, {"up"}, {"demo"}, {"chaos"})


@dataclass(frozen=True)
class Processes:
    """The processes of one system on this machine.

    Args:
        list_own: The pids that this process starts again; the children of workers' supervisors are found.
    """

    list_own: Callable[[], Iterable[int]] = tuple

    def find_worker(self, worker: WorkerState) -> psutil.Process | None:
        """The worker's process, if it runs here under a supervisor."""
        if worker.node != find_node_name():
            return None
        with suppress(psutil.Error):
            process = psutil.Process(worker.pid)
            parent = process.parent()
            if parent is not None and _is_supervisor(parent):
                return process
        return None

    def find_engine(self, worker: WorkerState) -> psutil.Process | None:
        """The worker's engine."""
        process = self.find_worker(worker)
        engines = [child for child in _list_children(process) if _has_word(child, ENGINE)] if process else []
        return engines[-1] if engines else None

    def list_dispatchers(self, workers: Iterable[WorkerState]) -> list[psutil.Process]:
        """The dispatchers that are started again when they die."""
        return [child for child in self._list_siblings(workers) if _has_word(child, DISPATCHER)]

    def find_server(self, workers: Iterable[WorkerState], names: Sequence[str]) -> psutil.Process | None:
        """The server with one of these programs, if it is started again when it dies."""
        servers = [child for child in self._list_siblings(workers) if _get_program(child) in names]
        return servers[0] if servers else None

    def _list_siblings(self, workers: Iterable[WorkerState]) -> list[psutil.Process]:
        found = (self.find_worker(worker) for worker in workers)
        parents = dict.fromkeys(process.parent() for process in found if process is not None)
        own = [psutil.Process(pid) for pid in self.list_own() if psutil.pid_exists(pid)]
        return own + [child for parent in parents if parent is not None for child in _list_children(parent)]


def list_node(worker: psutil.Process) -> list[psutil.Process]:
    """Everything that dies with a worker's node: its supervisor, and all that this one started."""
    supervisor = worker.parent()
    return [supervisor, *supervisor.children(recursive=True)] if supervisor is not None else []


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill processes at once, as the kernel would: nobody can react to the death of another."""
    doomed = list(processes)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs still; one that has ended and was not reaped does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def resume(process: psutil.Process) -> None:
    """Let a stopped process go on, if it is still there."""
    with suppress(psutil.NoSuchProcess):
        process.resume()


def _list_children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children())
    except psutil.Error:
        return []


def _is_supervisor(process: psutil.Process) -> bool:
    words = _get_command(process)
    is_ours = any(Path(word).name == "bitinglip" or "bitinglip.cli" in word for word in words)
    return is_ours and any(command <= set(words) for command in _PARENT_COMMANDS)


def _has_word(process: psutil.Process, word: str) -> bool:
    return word in _get_command(process)


def _get_program(process: psutil.Process) -> str:
    words = _get_command(process)
    return Path(words[0].split()[0]).name if words and words[0] else ""


def _get_command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
