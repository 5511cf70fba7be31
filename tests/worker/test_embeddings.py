"""Embeddings through the whole path, from both ways to ask."""

import json
import math
import subprocess
import sys

from bitinglip.client import Client
from bitinglip.store.database import Database
from tests.conftest import REPOSITORY, System, wait_for_workers

POOL = '[pools.default]\nkinds = ["embedding"]\ngpus = []\nslots = 4\npreload = []\n'

BY_CELERY = """
import json
from bitinglip.tasks import create_embedding
result = create_embedding.delay("What is the capital of Peru?", model="demo", dimensions=16)
print(json.dumps(result.get(timeout=60)["embeddings"]))
"""


def test_embedding_tasks_are_answered(processes: System, client: Client, database: Database) -> None:
    processes.start_dispatcher()
    processes.start_worker(pools=POOL)
    wait_for_workers(database, 1)
    texts = ["What is the capital of Peru?", "What is 17 plus 25?"]

    handle = client.submit("embedding", model="demo", input=texts, dimensions=16)
    bad = client.submit("embedding", model="demo", input=texts, dimensions=10_000)

    result = handle.result(timeout=60)
    assert (result["dimensions"], result["truncated"]) == (16, 0)
    first, second = result["embeddings"]
    assert (len(first), len(second)) == (16, 16)
    assert math.isclose(math.hypot(*first), 1, abs_tol=1e-6)
    usage = handle.task().usage
    assert usage is not None
    assert usage["prompt_tokens"] > 2
    assert usage["engine_seconds"] > 0
    error = bad.wait(timeout=60).error
    assert error is not None
    assert error.code == "invalid_request"
    said = subprocess.run(
        [sys.executable, "-c", BY_CELERY], cwd=REPOSITORY, capture_output=True, text=True, timeout=90, check=True
    )
    [alone] = json.loads(said.stdout)
    assert all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(first, alone, strict=True))
