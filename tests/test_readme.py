"""The README's program does what the README says."""

import re
import subprocess
import sys

from bitinglip.store.database import Database
from tests.conftest import REPOSITORY, System, wait_for_workers

TEXT_POOL = '[pools.default]\nkinds = ["text"]\ngpus = []\nslots = 8\npreload = ["demo"]\n'


def test_the_program_of_the_readme_prints_right_answers(processes: System, database: Database) -> None:
    match = re.search(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert match
    processes.start_dispatcher()
    processes.start_worker(pools=TEXT_POOL)
    wait_for_workers(database, 1)

    run = subprocess.run(
        [sys.executable, "-c", match[1]], capture_output=True, text=True, timeout=90, check=False, cwd=REPOSITORY
    )

    assert run.returncode == 0, run.stderr
    assert "Lima" in run.stdout
    assert "-> completed" in run.stdout
    assert run.stdout.count("=>") == 10
