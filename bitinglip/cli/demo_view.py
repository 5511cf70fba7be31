"""What the demo shows: a live table on a terminal, a line now and then elsewhere, and the answers at the end."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from bitinglip.cli.demo_pictures import PAINTER
from bitinglip.cli.demo_run import AGENTS, Answer, DemoRun
from bitinglip.cli.output import say, write_table
from bitinglip.domain.task import Priority

LINE_SECONDS = 1.0
MARKS = "ABC"


class View(Protocol):
    """Shows a run while it goes on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, run: DemoRun) -> None:
        """Show how far it is."""


class LiveView:
    """A table on the terminal, drawn over itself.

    Args:
        slots: How many tasks the workers run at once.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._live = Live(console=Console(stderr=True), auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, run: DemoRun) -> None:
        """Draw the table anew."""
        table = Table(title="queues", caption=_describe(run, self._slots))
        table.add_column("agent")
        for header in (*Priority, "running", "done"):
            table.add_column(header, justify="right")
        for agent in (*AGENTS, PAINTER):
            counts = run.count(agent)
            table.add_row(agent, *(str(counts[column]) for column in (*Priority, "running", "done")))
        self._live.update(table, refresh=True)


class LineView:
    """A line a second, for logs.

    Args:
        slots: How many tasks the workers run at once.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, run: DemoRun) -> None:
        """Write a line, if the last is a second old."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_SECONDS
            say(_describe(run, self._slots))


def choose_view(slots: int) -> View:
    """The live one on a terminal."""
    return LiveView(slots) if sys.stderr.isatty() else LineView(slots)


class StreamView:
    """One question, and its answer as it is generated."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._shown = 0

    def __enter__(self) -> Self:
        say(f"\n{self._answer.agent} asks: {self._answer.question.text}")
        click.echo("the model answers: ", nl=False, err=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        say("\n")

    def show(self, _: DemoRun) -> None:
        """Write what has come since the last look."""
        text = self._answer.streamed
        click.echo(text[self._shown :], nl=False, err=True)
        self._shown = len(text)


def write_report(run: DemoRun) -> None:
    """The answers, and what was measured."""
    rows = [
        (answer.agent, answer.priority, answer.question.text, answer.text or "-", "yes" if answer.right else "NO")
        for answer in run.answers
    ]
    write_table(["agent", "priority", "question", "answer", "right"], rows)
    click.echo()
    drawn = [
        (picture.prompt, picture.shows, "yes" if picture.right else "NO", picture.place or "-")
        for picture in run.pictures
    ]
    write_table([f"{PAINTER} asks for", "the picture shows", "right", "file"], drawn)
    found = run.summarise()
    marks = dict(zip(AGENTS, MARKS, strict=True))
    legend = ", ".join(f"{mark} = {agent}" for agent, mark in marks.items())
    click.echo()
    click.echo(f"right         {found['right']} of {found['tasks']}, {found['completed']} completed")
    click.echo(f"pictures      {found['shown']} of {len(run.pictures)} show what was asked for, {found['drawn']} drawn")
    click.echo(f"served        {''.join(marks[item['agent']] for item in found['served'])}  {legend}")
    click.echo(f"at priority   {''.join(item['priority'][0] for item in found['served'])}  the first was asked alone")
    click.echo(f"first token   after {found['ttft_p50_s']} s (median, queueing included)")
    click.echo(f"speed         {found['tokens_per_s']} tokens/s, {found['tokens']} tokens in {found['seconds']} s")


def _describe(run: DemoRun, slots: int) -> str:
    answered = sum(answer.state == "done" for answer in run.answers)
    drawn = sum(picture.state == "done" for picture in run.pictures)
    running = sum(task.state == "running" for task in run.tasks)
    speed = sum(answer.tokens for answer in run.answers) / max(run.elapsed_seconds, 0.001)
    done = f"{answered}/{len(run.answers)} answered, {drawn}/{len(run.pictures)} drawn"
    return f"{done}, {running} running in {slots} slots, {speed:,.0f} tokens/s"
