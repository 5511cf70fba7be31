"""The supervisor: the parent of workers on this machine.

    start each worker ──► signal, or all have left ──► stop them together
       └── one died: report its death, start it again

One that left by itself with status 0 was drained from afar, and is not started again.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from bitinglip.cli.deaths import make_death_reporter
from bitinglip.cli.output import say
from bitinglip.cli.programs import make_worker_program
from bitinglip.embedded import ProcessStack
from bitinglip.embedded.guard import Guard
from bitinglip.embedded.lock import DataLock
from bitinglip.embedded.signals import StopSignals
from bitinglip.errors import ConfigurationError
from bitinglip.settings import ServerSettings, find_node_name, load_settings
from bitinglip.telemetry import configure_logging
from bitinglip.worker.pools import WorkerSpec

LOOK_SECONDS = 0.2


def run_workers(specs: Sequence[WorkerSpec], data_dir: Path) -> None:
    """Run these workers until a signal asks for the end or all have left; one that dies is started again.

    A single one writes where we do, several to a log file each.

    Args:
        specs: Which; of each pool all, or one.
        data_dir: Takes their logs and pid files, under `workers/HOST`; a folder for each pool.

    Raises:
        ConfigurationError: If another process runs these workers here, or the folder cannot be written.
    """
    configure_logging()
    pools = dict.fromkeys(spec.pool_name for spec in specs)
    folders = {pool: _make_folder([s for s in specs if s.pool_name == pool], data_dir.expanduser()) for pool in pools}
    locks = _lock_all(folders.values())
    folder = next(iter(folders.values()))
    guard = Guard(folder / "guard.log", held_fds=[lock.descriptor for lock in locks])
    reporter = make_death_reporter(specs, lambda: load_settings(ServerSettings).find_urls())
    # The pid files of all together, whichever pools are started with each other the next time.
    stack = ProcessStack(folder.parent, guard, on_death=reporter)
    with StopSignals() as signals:
        try:
            for spec in specs:
                _start(stack, spec, folders[spec.pool_name] if len(specs) > 1 else None)
            while not signals.wait(LOOK_SECONDS):
                if stack.is_empty():
                    say("every worker has left")
                    return
        finally:
            stack.stop(signals.is_hurried)
            guard.close()
            for lock in locks:
                lock.release()


def _start(stack: ProcessStack, spec: WorkerSpec, log_folder: Path | None) -> None:
    program = make_worker_program(spec, log_folder, {})
    devices = ", ".join(gpu.name for gpu in spec.gpus) or "the CPU"
    where = f": log in {program.log_file}" if program.log_file else ""
    say(f"worker {spec.number} of pool {spec.pool_name!r} on {devices}{where}")
    stack.start(program)


def _lock_all(folders: Iterable[Path]) -> list[DataLock]:
    locks: list[DataLock] = []
    try:
        for folder in folders:
            locks.append(DataLock(folder))
    except BaseException:
        for lock in locks:
            lock.release()
        raise
    return locks


def _make_folder(specs: Sequence[WorkerSpec], data_dir: Path) -> Path:
    """A folder for these alone, of one pool: `--number` lets each have a parent, and machines may share their home."""
    name = specs[0].pool_name if len(specs) > 1 else f"{specs[0].pool_name}-{specs[0].number}"
    folder = data_dir / "workers" / find_node_name() / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(
            f"BITINGLIP_DATA_DIR is {data_dir}: {exc.strerror}; name a folder that this user may write"
        ) from exc
    return folder
