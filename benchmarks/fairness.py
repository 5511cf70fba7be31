"""How evenly three backlogged agents share a real system: engine seconds over time, against FIFO and turns by count.

    python benchmarks/fairness.py --json

Starts its own PostgreSQL, Valkey, dispatcher and worker with a small Llama that never ends a text by itself. The agents
want texts of very different lengths, 8 tokens (with twenty times the tasks), 8 to 200, and 200. In turn, on the same
machine and the same tasks:

- `equal`: weights 1:1:1. `jain_min` is the least Jain index of the agents' engine seconds in any window of 10 s while
  all of them are backlogged, windows every half second, from the first task on, when no cost is known yet
- `weighted`: weights 1:2:4. `share_error` is the greatest distance between an agent's share and its due share, relative
  to the due share, over the whole time
- `count`: turns by number of tasks (a pool with `charge = "tasks"`)
- `fifo`: in the order of submission (all under one agent's name)

Engine seconds are those that each attempt recorded, spread evenly over its time in the engine.

Jain index: (sum x)^2 / (n sum x^2); 1 is even.
"""

import sys

# This folder comes first on the path of a script in it, and its queue.py would hide the standard library's.
sys.path.pop(0)

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from bitinglip.client import Client
from bitinglip.domain.task import TaskRequest, make_request
from bitinglip.embedded import EmbeddedServers, ServerUrls
from bitinglip.store.database import Database
from bitinglip.store.migrate import upgrade

WINDOW_SECONDS = 10.0
STEP_SECONDS = 0.5
SLOTS = 16
POOL = '[pools.{pool}]\nkinds = ["text"]\ngpus = []\nslots = {slots}\npreload = ["{model}"]\ncharge = "{charge}"\n'
LENGTHS = {"short": (8, 8), "mixed": (8, 200), "long": (200, 200)}
TASKS = {"short": 8_400, "mixed": 420, "long": 420}
"""Together no more than one agent may have waiting."""


@dataclass(frozen=True)
class Served:
    """One attempt: whose, when it was in the engine (seconds), and the engine seconds it took."""

    agent: str
    began: float
    ended: float
    seconds: float


@dataclass(frozen=True)
class Policy:
    """How one scenario shares.

    Attributes:
        charge: What its pool charges.
        weights: By agent.
        under_one_name: Whether all tasks are one agent's: first come, first served.
    """

    charge: str = "seconds"
    weights: Mapping[str, float] | None = None
    under_one_name: bool = False


POLICIES = {
    "equal": Policy(),
    "weighted": Policy(weights={"short": 1, "mixed": 2, "long": 4}),
    "count": Policy(charge="tasks"),
    "fifo": Policy(under_one_name=True),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--seconds", type=float, default=60, help="of backlog to measure, for each policy (60)")
    parser.add_argument("--policies", default=",".join(POLICIES), help="which, in turn (all)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.environ["BITINGLIP_TASK_MAX_QUEUE_SIZE"] = "10000"
    with tempfile.TemporaryDirectory(prefix="bitinglip-bench-") as name:
        folder = Path(name)
        make_model(folder / "model")
        with EmbeddedServers(folder) as servers:
            upgrade(Database(servers.urls.database_url))
            report: dict[str, Any] = {
                policy: measure(servers.urls, folder, policy, options) for policy in options.policies.split(",")
            }
    report |= {"slots": SLOTS, "cpus": os.cpu_count(), "python": platform.python_version()}
    if "equal" in report:
        report["jain_min"] = report["equal"]["jain_min"]
    if "weighted" in report:
        report["share_error"] = report["weighted"]["share_error"]
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for name, value in report.items():
            print(f"{name:12} {value}")


def measure(urls: ServerUrls, folder: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Serve the agents by one policy until enough time is measured, and say how even it was."""
    policy = POLICIES[name]
    with Client(*urls) as client:
        clear(client)
        for agent, weight in (policy.weights or {}).items():
            execute(client, "INSERT INTO agents (id, weight) VALUES (:agent, :weight)", agent=agent, weight=weight)
        with running_system(urls, folder, f"pool-{name}", policy.charge):
            wait_for_model(client)
            submit_backlog(client, policy, folder / "model", random.Random(options.seed))
            until = wait_for_start(client) + options.seconds
            while read_now(client) < until and not is_anyone_idle(client):
                time.sleep(0.5)
            backlogged_until = read_now(client)
            while is_anyone_running_since(client, backlogged_until):
                time.sleep(0.2)
        served = read_served(client)
    began = min(item.began for item in served)
    ended = min(backlogged_until, began + options.seconds)
    report = judge(served, began, ended, policy.weights or dict.fromkeys(LENGTHS, 1.0))
    talk(f"{name}: {report}")
    return report


def judge(served: list[Served], began: float, ended: float, weights: Mapping[str, float]) -> dict[str, Any]:
    """How even the service was between two moments."""
    totals = sum_service(served, began, ended)
    due = {agent: weight / sum(weights.values()) for agent, weight in weights.items()}
    shares = {agent: seconds / sum(totals.values()) for agent, seconds in totals.items()}
    indexes = []
    start = began
    while start + WINDOW_SECONDS <= ended:
        window = sum_service(served, start, start + WINDOW_SECONDS)
        indexes.append(jain([window[agent] / weights[agent] for agent in weights]))
        start += STEP_SECONDS
    return {
        "jain_min": round(min(indexes), 4),
        "jain_min_at": indexes.index(min(indexes)) * STEP_SECONDS,
        "jain_median": round(statistics.median(indexes), 4),
        "share_error": round(max(abs(shares[agent] - due[agent]) / due[agent] for agent in due), 4),
        "shares": {agent: round(share, 4) for agent, share in shares.items()},
        "engine_seconds": round(sum(totals.values()), 1),
        "tasks": len([item for item in served if item.ended <= ended]),
        "windows": len(indexes),
        "seconds": round(ended - began, 1),
    }


def sum_service(served: list[Served], start: float, end: float) -> dict[str, float]:
    """Engine seconds of each agent between two moments."""
    totals = dict.fromkeys(LENGTHS, 0.0)
    for item in served:
        overlap = min(item.ended, end) - max(item.began, start)
        if overlap > 0:
            totals[item.agent] += item.seconds * overlap / max(item.ended - item.began, 1e-9)
    return totals


def jain(values: list[float]) -> float:
    """Jain's index of fairness."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def submit_backlog(client: Client, policy: Policy, model: Path, chance: random.Random) -> None:
    """More than can be done in the time, in a random order; whose a task is stands in its user_id."""
    owners = [agent for agent, count in TASKS.items() for _ in range(count)]
    chance.shuffle(owners)
    requests = [make_text(owner, policy, model, chance) for owner in owners]
    for start in range(0, len(requests), 1_000):
        client.submit_many(requests[start : start + 1_000])


def make_text(owner: str, policy: Policy, model: Path, chance: random.Random) -> TaskRequest:
    """One text of its owner's lengths."""
    payload = {
        "prompt": "".join(chance.choices("abcdefgh ", k=24)),
        "raw": True,
        "temperature": 0,
        "max_tokens": chance.randint(*LENGTHS[owner]),
    }
    agent = "everyone" if policy.under_one_name else owner
    return make_request("text", payload, model=str(model), agent_id=agent, user_id=owner, ttl=86_400)


def read_served(client: Client) -> list[Served]:
    """The attempts that ended."""
    sql = """
    SELECT t.user_id, extract(epoch FROM a.started_at)::float8, extract(epoch FROM a.finished_at)::float8,
           (a.usage ->> 'engine_seconds')::float8
    FROM attempts AS a JOIN tasks AS t ON t.id = a.task_id WHERE a.outcome = 'completed'
    """
    return [Served(*row) for row in execute(client, sql)]


def is_anyone_idle(client: Client) -> bool:
    """Whether somebody's tasks have run out."""
    sql = "SELECT count(DISTINCT user_id) FROM tasks WHERE queue_state = 'ready'"
    return bool(execute(client, sql)[0][0] < len(LENGTHS))


def is_anyone_running_since(client: Client, moment: float) -> bool:
    """Whether something that began before a moment has not ended: its engine seconds are not known yet."""
    sql = "SELECT count(*) FROM tasks WHERE status = 'in_progress' AND extract(epoch FROM started_at) < :moment"
    return bool(execute(client, sql, moment=moment)[0][0])


def wait_for_model(client: Client) -> None:
    """Return when the worker has loaded the model: who waits for that is no question of fairness."""
    while not execute(client, "SELECT FROM workers WHERE state = 'ready' AND models <> '{}'"):
        time.sleep(0.1)


def wait_for_start(client: Client) -> float:
    """When the first task began, in seconds of PostgreSQL's clock."""
    while True:
        (began,) = execute(client, "SELECT extract(epoch FROM min(started_at))::float8 FROM tasks")[0]
        if began is not None:
            return float(began)
        time.sleep(0.05)


def read_now(client: Client) -> float:
    """PostgreSQL's clock."""
    return float(execute(client, "SELECT extract(epoch FROM now())::float8")[0][0])


def clear(client: Client) -> None:
    """Forget every task, agent and charge, so that each policy starts alike."""
    names = "tasks, agents, queues, lanes, agent_shares, pools, settlements, costs, agent_usage"
    execute(client, f"TRUNCATE {names} CASCADE")


def execute(client: Client, sql: str, **values: Any) -> list[Any]:
    """Run one statement; its rows, if it gives any."""
    with client.database.transaction() as connection:
        result = connection.execute(text(sql), values)
        return list(result) if result.returns_rows else []


def make_model(folder: Path) -> None:
    """A small Llama with random weights and no token that ends a text; one token a byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=512,
        max_position_embeddings=512,
        eos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@contextmanager
def running_system(urls: ServerUrls, folder: Path, pool: str, charge: str) -> Iterator[None]:
    """One dispatcher and one worker as processes of their own."""
    pools = folder / f"{pool}.toml"
    pools.write_text(POOL.format(pool=pool, slots=SLOTS, model=folder / "model", charge=charge))
    environment = {
        **os.environ,
        "BITINGLIP_DATABASE_URL": urls.database_url,
        "BITINGLIP_REDIS_URL": urls.redis_url,
        "BITINGLIP_POOLS_FILE": str(pools),
        "BITINGLIP_POOL": pool,
        "BITINGLIP_DRAIN_SECONDS": "0",
    }
    commands = [
        [sys.executable, "-m", "celery", "-A", "bitinglip", "worker", "-n", f"{pool}@%h", "--without-gossip"],
        [sys.executable, "-m", "bitinglip.dispatcher"],
    ]
    with (folder / "system.log").open("ab") as log:
        processes = [subprocess.Popen(command, env=environment, stdout=log, stderr=log) for command in commands]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=60)


def talk(line: str) -> None:
    """Tell the person who waits."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
