"""`bitinglip` itself: which commands there are, and what becomes of an error that none of them caught."""

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from bitinglip.cli.failures import INTERRUPTED, report_failure, report_usage
from bitinglip.cli.lazy import Entry, LazyGroup
from bitinglip.cli.output import examples
from bitinglip.errors import BitingLipError

BROKEN_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended."""

COMMANDS = {
    "up": Entry("bitinglip.cli.up:up", "Run the whole system on this machine until Ctrl-C."),
    "demo": Entry("bitinglip.cli.demo:demo", "See agents' 60 prompts answered and 4 pictures drawn by real models."),
    "chaos": Entry("bitinglip.cli.chaos:chaos", "Break a system on purpose, and see that nothing is lost."),
    "submit": Entry("bitinglip.cli.submit:submit", "Submit a task."),
    "task": Entry("bitinglip.cli.task:task", "List, show, follow, cancel, retry and delete tasks."),
    "queue": Entry("bitinglip.cli.queue:queue", "See each agent's queues, and what failed for good."),
    "model": Entry("bitinglip.cli.model:model", "Fetch, list, verify, pin and remove models."),
    "worker": Entry("bitinglip.cli.worker:worker", "List, start and drain workers."),
    "agent": Entry("bitinglip.cli.agent:agent", "See the agents, limit them, and do their work."),
    "health": Entry("bitinglip.cli.health:health", "Check that servers, schema, dispatcher and workers are there."),
    "events": Entry("bitinglip.cli.events:events", "Watch what becomes of tasks, as it happens."),
    "stats": Entry("bitinglip.cli.stats:stats", "Count tasks, tokens and waits."),
    "report": Entry("bitinglip.cli.report:report", "See what each agent's tasks came to on a day."),
    "config": Entry("bitinglip.cli.config:config", "Check the configuration."),
    "db": Entry("bitinglip.cli.db:db", "Bring the database to this code's schema, and check what it says."),
}


class Root(LazyGroup):
    """The outermost group: it ends the process, with the right code and without a traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Run a command and exit.

        Args:
            args: The arguments; None: this process's.
            *rest: As for `click.Command.main`.
            **extra: As for `click.Command.main`.
        """
        arguments = list(sys.argv[1:] if args is None else args)
        sys.exit(self._run(arguments, *rest, **extra))

    def _run(self, arguments: list[str], *rest: Any, **extra: Any) -> int:
        as_json = "--json" in arguments
        extra["standalone_mode"] = False
        try:
            _check_encoding(arguments)
            code = super().main(arguments, *rest, **extra)
        except click.Abort:
            return INTERRUPTED
        except click.ClickException as exc:
            return report_usage(exc, as_json=as_json)
        except BitingLipError as exc:
            return report_failure(exc, as_json=as_json)
        return code if isinstance(code, int) else 0

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a reader of ours that went away (`| head`) ends it quietly."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # What is still buffered has nowhere to go: the interpreter's last flush must not say so.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(BROKEN_PIPE)


def _check_encoding(arguments: Sequence[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise click.UsageError(f"argument {argument!r} is not UTF-8; encode it so") from None


@click.group(
    cls=Root,
    entries=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "bitinglip demo                                                   see it work",
        "bitinglip up                                                     run it",
        'bitinglip submit text "What is the capital of Peru?" --follow    use it, from another terminal',
        "",
        "Every command has --help, with examples, and --json, for programs.",
        "BITINGLIP_DATA_DIR names another system than the default one; so do",
        "BITINGLIP_DATABASE_URL and BITINGLIP_REDIS_URL, for servers of your own.",
    ),
)
@click.version_option(package_name="bitinglip", message="bitinglip %(version)s")
def cli() -> None:
    """A durable, fair generation queue for the GPUs you own."""
