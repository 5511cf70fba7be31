"""Why a worker could not do a task however free it was: the rules of `dispatcher.placement`, with their names.

Invariant: there is no obstacle exactly where `WorkerRoom.may_take` says yes; a test holds the two together.
"""

from enum import StrEnum
from typing import Any


class Obstacle(StrEnum):
    """What is in the way."""

    OTHER_TYPES = "other_types"
    AGENT_NOT_ALLOWED = "agent_not_allowed"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    LOAD_FAILED = "load_failed"
    DOES_NOT_FIT = "does_not_fit"


def find_obstacle(worker: Any, type_: str, model: str, *, agent_id: str | None, size: int) -> Obstacle | None:
    """What keeps a worker from ever doing such a task as things are; None: nothing.

    Args:
        worker: With kinds, allowed_agents, allowed_models, avoids and memory_bytes, as `list_open_workers` gives it.
        type_: Of the task.
        model: It needs; empty: none.
        agent_id: Whose it is; None: whoever asks.
        size: Bytes that the model takes; 0: not known.
    """
    if type_ not in worker.kinds:
        return Obstacle.OTHER_TYPES
    if agent_id is not None and worker.allowed_agents is not None and agent_id not in worker.allowed_agents:
        return Obstacle.AGENT_NOT_ALLOWED
    if model and worker.allowed_models is not None and model not in worker.allowed_models:
        return Obstacle.MODEL_NOT_ALLOWED
    if model in worker.avoids:
        return Obstacle.LOAD_FAILED
    if worker.memory_bytes is not None and size > worker.memory_bytes:
        return Obstacle.DOES_NOT_FIT
    return None
