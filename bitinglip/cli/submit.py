"""`bitinglip submit`: a prompt becomes a task, and perhaps an answer."""

from typing import Any

import click

from bitinglip.cli.arguments import parse_json_object, read_json_object
from bitinglip.cli.images import submit_image
from bitinglip.cli.output import examples
from bitinglip.cli.submission import find_model, read_prompt, shared_options, submit_task, title_option


@click.group()
def submit() -> None:
    """Submit a task. Without --wait or --follow it writes the task's id and is done."""


@submit.command(
    "text",
    epilog=examples(
        'bitinglip submit text "What is the capital of Peru?" --follow',
        "bitinglip submit text - --agent my-bot --priority high --wait < question.txt",
        'id=$(bitinglip submit text "What is 17 plus 25?" --temperature 0)',
        'bitinglip submit text "What is the capital of Peru?" --quote --json',
        'bitinglip submit text "And who governs it?" --after $id --at "in 10m" --ttl 600',
        "bitinglip task show $id --json",
    ),
)
@click.argument("prompt")
@click.option("--model", metavar="M", default="demo", show_default=True, help="A model's name, or a folder.")
@click.option("--max-tokens", type=int, metavar="N", help="New tokens at most.  [default: 512]")
@click.option("--temperature", type=float, metavar="T", help="0 to 2; 0 takes the likeliest.  [default: 0.7]")
@click.option("--top-p", type=float, metavar="P", help="Choose among the likeliest tokens that add up to P.")
@click.option("--top-k", type=int, metavar="K", help="Choose among the K likeliest tokens; 0: among all.")
@click.option("--seed", type=int, metavar="N", help="The same seed chooses the same tokens.")
@click.option("--stop", multiple=True, metavar="S", help="End before this text; may be repeated.")
@click.option("--repetition-penalty", type=float, metavar="R", help="Above 1 avoids what was said.  [default: 1]")
@click.option(
    "--json-schema", metavar="FILE", callback=read_json_object, help="Make a JSON document of this JSON schema."
)
@title_option
@shared_options
def submit_text(prompt: str, model: str, stop: tuple[str, ...], **options: Any) -> None:
    """Generate text from PROMPT; `-` reads it from stdin."""
    submit_task("text", prompt=read_prompt(prompt), model=find_model(model), stop=list(stop), **options)


@submit.command(
    "embedding",
    epilog=examples(
        'bitinglip submit embedding "The capital of Peru" "Lima" --wait | jq .embeddings',
        "bitinglip submit embedding - --model org/name --dimensions 256 < passage.txt",
    ),
)
@click.argument("texts", nargs=-1, required=True)
@click.option("--model", metavar="M", default="demo", show_default=True, help="A model's name, or a folder.")
@click.option("--dimensions", type=int, metavar="N", help="Keep the first N of each vector.  [default: all]")
@click.option("--normalize/--no-normalize", default=None, help="Give vectors the length 1.  [default: normalize]")
@click.option("--title", metavar="T", help="For people.  [default: made from the first text]")
@shared_options
def submit_embedding(texts: tuple[str, ...], model: str, **options: Any) -> None:
    """Make a vector of each of TEXTS; `-` reads one from stdin."""
    submit_task("embedding", input=[read_prompt(text) for text in texts], model=find_model(model), **options)


submit.add_command(submit_image)


@submit.command(
    "echo",
    epilog=examples(
        "bitinglip submit echo hello --seconds 2 --chunks 5 --follow",
        "bitinglip submit echo hello --fail retryable --fail-attempts 1 --wait",
    ),
)
@click.argument("text", default="")
@click.option("--seconds", type=float, metavar="S", help="How long it takes.  [default: 0]")
@click.option("--chunks", type=int, metavar="N", help="In how many pieces the text comes.  [default: 1]")
@click.option("--fail", metavar="HOW", help="error, retryable, out_of_memory, crash (of the engine) or hang.")
@click.option("--fail-attempts", type=int, metavar="N", help="Fail on the first N attempts only.")
@title_option
@shared_options
def submit_echo(text: str, **options: Any) -> None:
    """Give TEXT back, after a while, or fail as told: for tests of what you build on BitingLip."""
    submit_task("echo", text=text, **options)


@submit.command(
    "download",
    epilog=examples(
        "bitinglip submit download org/name --follow",
        "id=$(bitinglip submit download org/name --revision v1.0)",
        'bitinglip submit text "What is the capital of Peru?" --model org/name@v1.0 --follow',
    ),
)
@click.argument("model")
@click.option("--revision", metavar="R", help="A branch, a tag or a commit.  [default: main]")
@title_option
@shared_options
def submit_download(model: str, **options: Any) -> None:
    """Fetch MODEL, organisation/name on the hub, for every worker.

    If somebody has asked for the model already, the id is that of the task that fetches it.
    """
    submit_task("download", model=model, **options)


@submit.command(
    "agent",
    epilog=examples(
        "bitinglip submit agent 'Write the minutes' --agent my-bot --payload '{\"meeting\": 17}'",
        "bitinglip agent next --agent my-bot --json",
    ),
)
@click.argument("title")
@click.option("--payload", metavar="JSON", callback=parse_json_object, help="A JSON object: all that the agent needs.")
@shared_options
def submit_agent(title: str, **options: Any) -> None:
    """Submit work that the agent takes itself, with `bitinglip agent next` or the client's `next`."""
    submit_task("agent", title=title, **options)
