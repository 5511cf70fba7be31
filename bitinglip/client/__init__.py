"""Submit tasks and get what they made, from Python, sync and async.

    with Client() as client:
        handle = client.submit("text", model="demo", prompt="What is the capital of Peru?", agent="my-bot")
        print(handle.result(timeout=60)["text"])

A client needs PostgreSQL to submit, and nothing else: with Redis away the task is recorded and runs all the same, and
`stream` and `result` read the record in place of the events.

    sync      Client: submit, read, cancel
    handle    Handle: one task: its status, its result, its events
    follow    a task's events to their end, from Redis and, where Redis lacks them, from the record
    pictures  a task's pictures as files of this machine
    models    what is known of the models that tasks name
    taken     TakenTask: work that this process took to do itself, under a lease
    aio       the same for asyncio
    manager   TaskManager: the records of the tasks: list, update, retry, delete
    filters   which tasks are meant
"""

from bitinglip.client.aio import AsyncClient, AsyncHandle, AsyncTakenTask
from bitinglip.client.filters import TaskFilter
from bitinglip.client.handle import Handle
from bitinglip.client.manager import TaskManager
from bitinglip.client.sync import Client
from bitinglip.client.taken import TakenTask

__all__ = [
    "AsyncClient",
    "AsyncHandle",
    "AsyncTakenTask",
    "Client",
    "Handle",
    "TakenTask",
    "TaskFilter",
    "TaskManager",
]
