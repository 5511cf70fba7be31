"""Several workers of one pool as children of this process: one for every GPU."""

from collections.abc import Sequence
from pathlib import Path

from bitinglip.cli.output import say
from bitinglip.cli.programs import make_worker_program
from bitinglip.embedded import ProcessStack
from bitinglip.embedded.guard import Guard
from bitinglip.embedded.lock import DataLock
from bitinglip.embedded.signals import StopSignals
from bitinglip.telemetry import configure_logging
from bitinglip.worker.pools import WorkerSpec


def run_pool(specs: Sequence[WorkerSpec], data_dir: Path) -> None:
    """Run these workers until a signal asks for the end; one that dies is started again.

    Args:
        specs: All of one pool.
        data_dir: Takes their logs, under `workers/POOL`.

    Raises:
        ConfigurationError: If another process runs this pool here.
    """
    configure_logging()
    folder = data_dir.expanduser() / "workers" / specs[0].pool_name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = DataLock(folder)
    guard = Guard(folder / "guard.log", held_fds=[lock.descriptor])
    stack = ProcessStack(folder, guard)
    with StopSignals() as signals:
        try:
            for spec in specs:
                program = make_worker_program(spec, folder, {})
                stack.start(program)
                say(f"worker {spec.number} of pool {spec.pool_name!r}: log in {program.log_file}")
            signals.wait()
        finally:
            stack.stop(signals.is_hurried)
            guard.close()
            lock.release()
