"""`bitinglip submit image`: a prompt becomes pictures, shown as they come and saved where they are wanted."""

import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from bitinglip.cli.explain import write_quote
from bitinglip.cli.fields import name_options
from bitinglip.cli.follow import follow_task, wait_for_task
from bitinglip.cli.output import examples, say
from bitinglip.cli.pictures import Delivery, check_folder
from bitinglip.cli.preview import find_renderable
from bitinglip.cli.submission import (
    await_end,
    find_model,
    keep_given,
    read_prompt,
    record_task,
    refuse_contradiction,
    shared_options,
    title_option,
    write_receipt,
)
from bitinglip.client import Client, Handle
from bitinglip.domain.artifacts import is_artifact_name, make_upload_name
from bitinglip.domain.catalogue import IMAGE
from bitinglip.domain.image_payload import ImageFormat, ImagePayload, Scheduler
from bitinglip.domain.task import Task, describe_first_error

PREVIEW_STEPS = 4
"""From one preview to the next, where somebody sees them."""


def _parse_size(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    size = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text.strip())
    if size is None:
        raise click.BadParameter(f"{text!r} is no size; write width and height in pixels, such as 512x512")
    return int(size[1]), int(size[2])


@click.command(
    "image",
    epilog=examples(
        'bitinglip submit image "a red circle on blue" --out .',
        'bitinglip submit image "a lighthouse" --model org/name --size 1024x768 --count 4 --seed 7 --out out --open',
        'bitinglip submit image "the same at night" --model org/name --image out/day.png --strength 0.6 --out out',
        'bitinglip submit image "a red circle on blue" --wait --json | jq -r .result.images[0].artifact',
    ),
)
@click.argument("prompt")
@click.option("--model", metavar="M", default="demo-image", show_default=True, help="A model's name, or a folder.")
@click.option("--size", metavar="WxH", callback=_parse_size, help="In pixels.  [default: the model's own]")
@click.option("--steps", type=int, metavar="N", help="Of taking noise away.  [default: 20]")
@click.option("--guidance", type=float, metavar="G", help="How closely PROMPT is followed.  [default: the model's own]")
@click.option("--seed", type=int, metavar="N", help="The same seed draws the same picture.")
@click.option("--count", type=int, metavar="N", help="Pictures; each has the seed after the last one's.  [default: 1]")
@click.option("--negative-prompt", metavar="T", help="What the pictures should not show.")
@click.option(
    "--scheduler",
    type=click.Choice([name.value for name in Scheduler]),
    metavar="S",
    help="ddim, euler, ...  [default: the model's own]",
)
@click.option("--image", metavar="FILE|ARTIFACT", help="Start from this picture: a file, or what a task made.")
@click.option("--strength", type=float, metavar="X", help="How much of that picture is redrawn: above 0 to 1.")
@click.option("--format", type=click.Choice([name.value for name in ImageFormat]), help="[default: png]")
@click.option("--quality", type=int, metavar="N", help="Of webp and jpeg: 1 to 100.  [default: 90]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Wait, and save the pictures here; several also on one sheet.",
)
@click.option("--open", "opens", is_flag=True, help="Wait, and show the picture, or the sheet of several.")
@click.option(
    "--preview/--no-preview",
    default=None,
    help="Show the picture as it comes.  [default: where the terminal shows pictures]",
)
@title_option
@shared_options
def submit_image(
    prompt: str,
    *,
    model: str,
    size: tuple[int, int] | None,
    image: str | None,
    out: Path | None,
    preview: bool | None,
    opens: bool,
    quote: bool,
    wait: bool,
    follow: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw pictures of PROMPT; `-` reads it from stdin.

    With --wait, --out or --open it writes where the pictures are, one a line.
    """
    refuse_contradiction(quote=quote, wait=wait, follow=follow)
    waits = wait or follow or opens or out is not None
    if quote and waits:
        raise click.UsageError("--quote draws nothing; leave --out and --open out")
    width, height = size or (None, None)
    sides = {"width": width, "height": height}
    fields = keep_given({"prompt": read_prompt(prompt), "model": find_model(model), **sides, **options})
    with Client() as client:
        if quote:
            write_quote(client, IMAGE.name, {**fields, **_stand_in(image)}, as_json=as_json)
            return
        delivery = Delivery(out.expanduser() if out is not None else None, opens)
        if delivery.folder is not None:
            check_folder(delivery.folder)
        fields |= _bring(client, fields, image)
        if waits and not as_json:
            fields |= _choose_previews(fields, preview=preview)
        handle = record_task(client, IMAGE.name, fields)
        if waits:
            show = partial(_show, client, handle, delivery, follow=follow, preview=preview, as_json=as_json)
            await_end(client, handle, IMAGE.name, show)
        else:
            write_receipt(handle, as_json=as_json)


def _stand_in(image: str | None) -> dict[str, str]:
    """The picture to start from, under a name that it could have: a quote brings nothing."""
    if image is None:
        return {}
    return {"image": image if is_artifact_name(image) else make_upload_name("0" * 64, "png")}


def _bring(client: Client, fields: Mapping[str, Any], image: str | None) -> dict[str, str]:
    """Upload the picture to start from, if it is a file, and if nothing else is wrong with the request."""
    if image is None or is_artifact_name(image):
        return {} if image is None else {"image": image}
    path = Path(image).expanduser()
    if not path.exists():
        remedy = "there is no such file, and no artifact has such a name; take one from a task's result"
        raise click.BadParameter(f"{image!r}: {remedy}", param_hint="'--image'")
    with name_options():
        _check_payload({**fields, **_stand_in(image)})
        return {"image": client.upload(path)}


def _check_payload(fields: Mapping[str, Any]) -> None:
    try:
        ImagePayload.model_validate({name: fields[name] for name in ImagePayload.model_fields.keys() & fields.keys()})
    except ValidationError as exc:
        raise describe_first_error(exc) from exc


def _choose_previews(fields: Mapping[str, Any], *, preview: bool | None) -> dict[str, int]:
    """Ask for previews where they are seen."""
    if preview is None and "idempotency_key" in fields:
        # The same request from another terminal must be the same.
        return {}
    if find_renderable(preview=preview) is not None:
        return {"preview_steps": PREVIEW_STEPS}
    if preview:
        say("this terminal shows no pictures")
    return {}


def _show(
    client: Client, handle: Handle, delivery: Delivery, *, follow: bool, preview: bool | None, as_json: bool
) -> None:
    def finish(task: Task) -> None:
        for place in delivery.deliver(client.artifacts, task):
            click.echo(place)

    if as_json:
        (follow_task if follow else wait_for_task)(handle, as_json=True)
        if delivery.folder is not None or delivery.opens:
            for place in delivery.deliver(client.artifacts, handle.task()):
                say(place)
    elif follow or sys.stderr.isatty():
        follow_task(handle, preview=preview, finish=finish)
    else:
        wait_for_task(handle, finish=finish)
