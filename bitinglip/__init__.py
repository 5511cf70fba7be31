"""BitingLip: a durable, fair generation queue for the GPUs you own.

    client ─► lifecycle.submit ─► PostgreSQL ─► dispatcher ─► Celery over Redis ─► worker ─► engine
                                      ▲                                              │
                                      └──────────── lifecycle.finish (fenced) ◄──────┘

The life of a task reads: `lifecycle/submit` → `store/tasks` → `dispatcher/plan` ⟂ `tasks` → `lifecycle/claim` → `run` →
`engine` → `artifacts/spool`, if it makes files → `finish` → `store/tasks`. Each package's docstring holds its picture
and its decisions.

Importing this imports nothing else: `bitinglip --help` and a client's start stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitinglip.celery_app import app
    from bitinglip.client import AsyncClient, Client, TakenTask, TaskManager
    from bitinglip.domain.task import Priority, Status, make_request

__all__ = ["AsyncClient", "Client", "Priority", "Status", "TakenTask", "TaskManager", "app", "make_request"]

_HOMES = {
    "AsyncClient": "bitinglip.client",
    "Client": "bitinglip.client",
    "Priority": "bitinglip.domain.task",
    "Status": "bitinglip.domain.task",
    "TakenTask": "bitinglip.client",
    "TaskManager": "bitinglip.client",
    "app": "bitinglip.celery_app",
    "make_request": "bitinglip.domain.task",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        message = f"module 'bitinglip' has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_HOMES[name]), name)
