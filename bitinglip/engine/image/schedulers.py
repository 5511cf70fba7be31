"""Which schedulers a pipeline goes with, and one of its own for each batch.

A scheduler holds where a batch stands (its timesteps, what the last steps gave), so batches in flight never share one.
It is also what every pipeline of diffusers calls: once to set its timesteps, when the prompts are encoded, and once a
step. That is where a batch pauses; callbacks for that purpose differ between pipelines, and many have none.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

import diffusers

from bitinglip.domain.image_payload import Scheduler

_CLASSES = {
    Scheduler.DDIM: "DDIMScheduler",
    Scheduler.DDPM: "DDPMScheduler",
    Scheduler.DEIS: "DEISMultistepScheduler",
    Scheduler.DPM_MULTISTEP: "DPMSolverMultistepScheduler",
    Scheduler.DPM_SINGLESTEP: "DPMSolverSinglestepScheduler",
    Scheduler.EULER: "EulerDiscreteScheduler",
    Scheduler.EULER_ANCESTRAL: "EulerAncestralDiscreteScheduler",
    Scheduler.HEUN: "HeunDiscreteScheduler",
    Scheduler.PNDM: "PNDMScheduler",
    Scheduler.UNIPC: "UniPCMultistepScheduler",
}
_FLOW_CLASSES = {Scheduler.EULER: "FlowMatchEulerDiscreteScheduler"}
"""Models that learnt a flow take other classes: their noise is mixed in differently."""


def find_schedulers(own: Any) -> dict[Scheduler, type[Any]]:
    """The schedulers that a pipeline goes with, by name, judged by the one that it came with."""
    known = _FLOW_CLASSES if type(own).__name__.startswith("FlowMatch") else _CLASSES
    classes = {name: getattr(diffusers, class_name) for name, class_name in known.items()}
    compatible = {type(own), *getattr(own, "compatibles", [])}
    flows = _learnt_flow(own)
    return {name: kind for name, kind in classes.items() if kind in compatible and (not flows or _takes_flow(kind))}


def make_scheduler(own: Any, kind: type[Any] | None) -> Any:
    """A new scheduler for one batch: of a kind, or like the pipeline's own."""
    return (kind or type(own)).from_config(own.config)


def watch_scheduler(scheduler: Any, *, on_ready: Callable[[], None], on_step: Callable[[Any], None]) -> None:
    """Call back from a batch's scheduler.

    Args:
        scheduler: The batch's own.
        on_ready: Called when timesteps are set.
        on_step: Called after each step with the new latents.
    """
    set_timesteps, step = scheduler.set_timesteps, scheduler.step

    # Pipelines look at both signatures before they call.
    @wraps(set_timesteps)
    def set_and_tell(*arguments: Any, **options: Any) -> None:
        set_timesteps(*arguments, **options)
        on_ready()

    @wraps(step)
    def step_and_tell(*arguments: Any, **options: Any) -> Any:
        made = step(*arguments, **options)
        on_step(made[0])
        return made

    scheduler.set_timesteps, scheduler.step = set_and_tell, step_and_tell


def _learnt_flow(own: Any) -> bool:
    return own.config.get("prediction_type") == "flow_prediction" or bool(own.config.get("use_flow_sigmas"))


def _takes_flow(kind: type[Any]) -> bool:
    return "use_flow_sigmas" in signature(kind).parameters
