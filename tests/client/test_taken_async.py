"""An agent takes its tasks with asyncio: the same, and a wait that is cancelled keeps nothing."""

import asyncio
import threading
from typing import Any

import pytest

from bitinglip.client import AsyncClient, Client
from bitinglip.domain.task import QueueState
from bitinglip.lifecycle.take import take as take_from_store
from bitinglip.settings import ServerUrls
from bitinglip.store.database import Database
from tests.client.test_taken import submit
from tests.factories import execute, read


def test_the_asyncio_client_takes_too(urls: ServerUrls, client: Client, database: Database) -> None:
    async def use() -> None:
        async with AsyncClient(*urls) as own:
            assert await own.next("bot", 0) is None
            # More waits than the loop has threads keep nothing else from running.
            waiting = [asyncio.create_task(own.next("bot")) for _ in range(40)]
            handles = [await own.submit("agent", agent="bot", title=str(n)) for n in range(3)]
            done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            while len(done) < 3:
                more, rest = await asyncio.wait(rest, return_when=asyncio.FIRST_COMPLETED)
                done |= more
            first, second, third = [one.result() for one in done]
            assert first is not None
            assert second is not None
            assert third is not None
            await first.complete({"n": 1})
            await second.fail("no")
            async with third:
                assert not await third.keep(10)
            for one in rest:
                one.cancel()
            ended = await asyncio.gather(*rest, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ended)
            statuses = sorted([(await handle.status()) for handle in handles])
            assert statuses == ["completed", "failed", "pending"]
            again = await own.next("bot", 5)
            assert again is not None
            assert again.id == third.id
            assert {attempt.outcome for attempt in await own.attempts(third.id)} == {"lost"}
            assert [change.status for change in await own.cancel([third.id])] == ["in_progress"]
            await (await own.taken(again.id, again.token)).complete()

    asyncio.run(use())
    assert execute(database, "SELECT count(*) FROM workers WHERE state <> 'gone'") == [(0,)]


def test_a_task_that_is_taken_while_the_wait_is_cancelled_is_handed_back(
    urls: ServerUrls, client: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, go_on = threading.Event(), threading.Event()

    def take_slowly(*arguments: Any) -> Any:
        found = take_from_store(*arguments)
        if found is not None:
            taken.set()
            go_on.wait(10)
        return found

    monkeypatch.setattr("bitinglip.client.taken.take", take_slowly)
    task = submit(client)

    async def use() -> None:
        async with AsyncClient(*urls) as own:
            waiting = asyncio.create_task(own.next("bot"))
            assert await asyncio.to_thread(taken.wait, 10)
            waiting.cancel()
            await asyncio.sleep(0)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(use())
    assert read(database, task).queue_state is QueueState.READY
