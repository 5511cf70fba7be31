"""The kinds of fault, by the names that people write."""

from enum import StrEnum


class Fault(StrEnum):
    """What is done."""

    ENGINE = "engine"
    WORKER = "worker"
    NODE = "node"
    PAUSE = "pause"
    DISPATCHER = "dispatcher"
    REDIS_KILL = "redis-kill"
    REDIS_FLUSH = "redis-flush"
    POSTGRES_KILL = "postgres-kill"
    POSTGRES_TERMINATE = "postgres-terminate"
