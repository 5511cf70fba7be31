"""Whatever becomes of Redis and of workers, the texts since the last `restart` are the result's text."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.client.follow import follow_events
from bitinglip.domain.task import Status, Task
from bitinglip.streams.events import Event, EventName, order_of
from bitinglip.streams.takeover import read_made_text

Script = Sequence[Callable[["World"], None]]

T = EventName.TEXT


class World:
    """A task, its stream and the attempts at it, moved on by a script, a step whenever the stream is read."""

    def __init__(self, script: Script = ()) -> None:
        self.steps = iter(script)
        self.stream: list[Event] = []
        self.last = (0, 0)
        self.away = False
        self.attempt = 1
        self.sequences = {1: 0}
        self.text = ""
        self.result: str | None = None
        self.publish(EventName.STARTED, attempt=1)

    def publish(self, name: EventName, *, attempt: int | None = None, by: int | None = None, **data: Any) -> None:
        number = by or self.attempt
        self.sequences[number] += 1
        event_id = f"{number}-{self.sequences[number]}"
        if not self.away and order_of(event_id) > self.last:
            self.stream.append(Event(event_id, name, {**data, **({"attempt": attempt} if attempt else {})}))
            self.last = order_of(event_id)

    def say(self, text: str) -> None:
        self.text += text
        self.publish(EventName.TEXT, text=text, token_ids=list(map(ord, text)))

    def begin_next_attempt(self) -> None:
        self.attempt += 1
        self.sequences[self.attempt] = 0
        self.publish(EventName.STARTED, attempt=self.attempt)
        made = None if self.away else read_made_text(self.earlier)
        if made is None:
            self.text = ""
            self.publish(EventName.RESTART)
        else:
            self.text = "".join(map(chr, made.token_ids))
            self.publish(EventName.RESUMED, chars=made.chars)

    @property
    def earlier(self) -> list[Event]:
        return [event for event in self.stream if order_of(event.id) < (self.attempt, 0)]

    def cut(self, keep: int, *, last_id_too: bool) -> None:
        """Lose what was written last, or everything."""
        del self.stream[keep:]
        if last_id_too:
            self.last = order_of(self.stream[-1].id) if self.stream else (0, 0)

    def trim(self, count: int) -> None:
        del self.stream[:count]

    def finish(self) -> None:
        self.result = self.text
        self.publish(EventName.FINISHED, status="completed")

    def read_task(self) -> Task:
        status = Status.COMPLETED if self.result is not None else Status.IN_PROGRESS
        return Task.model_construct(
            agent_id="bot",
            priority="medium",
            status=status,
            attempt=self.attempt,
            result=None if self.result is None else {"text": self.result},
            error=None,
        )

    def read_events(self, after: str, wait_seconds: float) -> list[Event]:
        step = next(self.steps, None)
        if step is not None:
            step(self)
        elif self.result is None:
            self.finish()
        return [] if self.away else [event for event in self.stream if order_of(event.id) > order_of(after)]

    def follow(self, after: str | None = None) -> Iterator[Event]:
        return follow_events(self.read_task, self.read_events, after)


class Reader:
    """Keeps a text as `task follow --json`'s user would."""

    def __init__(self) -> None:
        self.text = ""
        self.shown: list[str] = []
        self.restarts = 0
        self.last_id: str | None = None

    def take(self, event: Event) -> None:
        if event.name is EventName.RESTART:
            self.text = ""
            self.restarts += 1
        if event.name is EventName.TEXT:
            self.shown.append(event.data["text"])
            self.text += event.data["text"]
        self.last_id = event.id

    def read(self, world: World, count: int | None = None) -> bool:
        """Read so many events after the last one, or all; whether the last of all was among them."""
        for event in islice(world.follow(self.last_id), count):
            self.take(event)
            if event.name is EventName.FINISHED:
                return True
        return False


def read_all(world: World, after: str | None = None) -> Reader:
    reader = Reader()
    reader.last_id = after
    reader.read(world)
    return reader


def say(text: str) -> Callable[[World], None]:
    return lambda world: world.say(text)


def next_attempt(world: World) -> None:
    world.begin_next_attempt()


def wipe(world: World) -> None:
    world.cut(0, last_id_too=True)


def leave(world: World) -> None:
    world.away = True


def come_back(world: World) -> None:
    world.away = False


def lose_two(world: World) -> None:
    world.cut(max(0, len(world.stream) - 2), last_id_too=True)


def trim_two(world: World) -> None:
    world.trim(2)


def hear_zombie(world: World) -> None:
    if world.attempt > 1:
        world.publish(T, by=world.attempt - 1, text="zombie", token_ids=[1])


def pause(world: World) -> None:
    """Have the stream read once more."""


def test_a_text_goes_on_over_attempts_without_a_restart() -> None:
    reader = read_all(World([say("one "), next_attempt, say("two "), next_attempt, next_attempt, say("three")]))

    assert reader.text == "one two three"
    assert reader.restarts == 0


def test_what_an_attempt_could_not_send_is_not_continued_from() -> None:
    world = World([say("one "), leave, say("lost "), come_back, next_attempt, say("two")])
    reader = read_all(world)

    assert world.result == reader.text == "one two"
    assert reader.restarts == 0


def test_a_reader_that_saw_more_than_redis_kept_is_given_the_results_text() -> None:
    world = World([say("one "), say("two "), say("lost"), pause, lose_two, next_attempt, say("three")])
    reader = read_all(world)

    assert world.result == reader.text == "one three"
    assert reader.shown == ["one ", "two ", "lost", "one three"]


@pytest.mark.parametrize("breaks", [[5], [4, 1], [4, 1, 1], [6], [5, 5]])
def test_a_reader_that_saw_more_than_redis_kept_may_resume_anywhere(breaks: list[int]) -> None:
    world = World([say("one "), say("lost"), lose_two, next_attempt, say("two")])
    reader = Reader()
    for count in breaks:
        reader.read(world, count)
    reader.read(world)

    assert reader.text == world.result


@pytest.mark.parametrize("begun_again", [False, True])
def test_a_reader_whose_last_event_redis_lost_is_shown_no_text_before_all_of_it(begun_again: bool) -> None:
    world = World([next_attempt, say("three")])
    if begun_again:
        wipe(world)
        world.begin_next_attempt()
    world.say("one ")
    world.say("lost")
    after = world.stream.pop().id
    world.last = order_of(world.stream[-1].id)

    reader = read_all(world, after)

    assert reader.shown == ["one three"]
    assert reader.restarts == 1


def test_text_from_the_record_is_not_resumed_after_as_if_it_were_a_workers() -> None:
    def finish_unheard(world: World) -> None:
        world.away = True
        world.say("two ")
        world.say("three")
        world.finish()

    world = World([say("one "), finish_unheard])
    reader = Reader()
    reader.read(world, 4)
    assert reader.text == "one two three"

    world.away = False
    world.sequences[1] = 2
    world.publish(EventName.TEXT, text="two ")
    world.publish(EventName.TEXT, text="three")
    world.publish(EventName.FINISHED, status="completed")
    reader.read(world)

    assert reader.text == "one two three"


def test_a_wiped_stream_begins_again() -> None:
    world = World([say("one "), pause, wipe, next_attempt, say("two")])
    reader = read_all(world)

    assert world.result == reader.text == "two"
    assert reader.restarts == 1


def test_a_hole_is_filled_at_the_end_without_a_restart() -> None:
    world = World([say("one "), leave, say("two "), come_back, say("three")])
    reader = read_all(world)

    assert reader.text == "one two three"
    assert reader.restarts == 0


def test_a_started_alone_resets_nothing() -> None:
    world = World([say("one "), next_attempt])
    events = list(world.follow())

    assert [event.name for event in events] == [
        "queued",
        "started",
        "text",
        "started",
        "resumed",
        "finished",
    ]


def test_a_task_that_was_brought_back_is_followed_to_its_last_end() -> None:
    def end_and_bring_back(world: World) -> None:
        world.finish()
        world.result = None
        world.begin_next_attempt()

    world = World([say("one "), end_and_bring_back, say("two")])
    reader = read_all(world)

    assert world.result == reader.text == "two"
    assert reader.restarts == 1


@pytest.mark.parametrize("after", ["1-2", "1-1", "0-1", "0-0"])
def test_a_resumed_reader_is_shown_what_follows(after: str) -> None:
    world = World([say("one "), say("two "), next_attempt, say("three")])
    whole = [event.id for event in world.follow()]

    assert [event.id for event in world.follow(after)] == [
        i for i in whole if order_of(i) > max(order_of(after), (0, 1))
    ]


@pytest.mark.parametrize("lose", [wipe, trim_two])
def test_a_resumed_reader_whose_past_is_gone_is_given_the_whole_text(lose: Callable[[World], None]) -> None:
    world = World([say("three")])
    world.say("one ")
    world.say("two ")
    lose(world)

    reader = read_all(world, "1-3")

    assert reader.text == "one two three"
    assert reader.restarts == 1


def test_a_task_without_text_is_never_restarted_at_its_end() -> None:
    world = World([wipe])
    world.read_task = lambda: Task.model_construct(  # type: ignore[method-assign]
        agent_id="bot", priority="medium", status=Status.FAILED, attempt=1, result=None, error=None
    )

    assert [event.name for event in world.follow("1-7")] == ["finished"]


STEPS = st.one_of(
    st.text("abc", min_size=1, max_size=3).map(say),
    st.sampled_from([next_attempt, wipe, leave, come_back, come_back, lose_two, trim_two, hear_zombie, pause]),
)


@given(script=st.lists(STEPS, max_size=25), breaks=st.lists(st.integers(1, 8), max_size=4))
def test_whatever_happens_the_texts_since_the_last_restart_are_the_results(script: Script, breaks: list[int]) -> None:
    world = World(script)
    reader = Reader()
    if not any(reader.read(world, count) for count in breaks):
        reader.read(world)

    assert reader.text == world.result
