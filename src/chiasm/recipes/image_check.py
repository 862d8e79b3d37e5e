"""What a run says about its images: before training, what is lost at the size the model sees;
after it, whether the model uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape

from chiasm.core.sample import Sample
from chiasm.data.resolution import Resolution, resolution
from chiasm.eval.image_use import ImageUse
from chiasm.recipes.held_out import HeldOut
from chiasm.recipes.jobs.job import Job
from chiasm.train.stage import Stage

FEW_STEPS = 300
"""Steps in all after which a model has often not yet begun to look."""
FEW_SAMPLES = 20_000
"""Training samples below which an encoder trained from nothing learns little but their layout."""


def check_resolution(job: Job, samples: Sequence[Sample], console: Console) -> Resolution | None:
    """Warn if the training images lose their text or details at the size that the model sees."""
    found = resolution(samples, job.processor.input_size)
    lost = what_is_lost(job, found)
    if lost:
        console.print(f"[yellow]{escape(lost)}[/]", soft_wrap=True)
    return found


def what_is_lost(job: Job, seen: Resolution | None) -> str | None:
    """What images lose at the size that the model sees, with the option that ends it."""
    warning = seen and seen.warning()
    if not warning:
        return None
    return f"{warning}; larger: {job.larger_images}" if job.larger_images else warning


def check_image_use(
    job: Job, stages: Sequence[Stage], seen: Resolution | None, trained_on: int, console: Console
) -> dict | None:
    """Ask held-out questions with their own and with other images and print what came of it; as
    JSON, None where there is nothing to ask. trained_on: training samples."""
    if not isinstance(job.evaluate, HeldOut):
        return None
    use = job.evaluate.image_use(stages[-1].autocast)
    if use is None:
        return None
    console.print(message(use), soft_wrap=True)
    if use.verdict != "used":
        for reason in reasons(job, stages, seen, trained_on):
            console.print(escape(f"  - {reason}"), soft_wrap=True)
    return {**use.to_dict(), "resolution": asdict(seen) if seen else None}


def message(use: ImageUse) -> str:
    """The sentence of the check, in rich's markup."""
    color = {"used": "green", "not used": "bold red", "unclear": "yellow"}[use.verdict]
    return f"[{color}]{escape(use.sentence())}[/]"


def reasons(
    job: Job, stages: Sequence[Stage], seen: Resolution | None, trained_on: int
) -> list[str]:
    """Why the image may not be used, the likeliest first, each with what to do."""
    lost = what_is_lost(job, seen)
    found = [lost] if lost else []
    if trained_on < FEW_SAMPLES:
        found.append(
            f"{trained_on} training samples: too few for an encoder or an image tokenizer that was "
            "trained on them alone; start from pretrained ones or add images (chiasm data --help)"
        )
    steps = sum(stage.steps for stage in stages)
    if steps < FEW_STEPS:
        found.append(f"{steps} steps: train longer (--stages.0.steps)")
    found.append(
        "questions that can be answered without the image teach to answer without it: compare "
        "`chiasm eval RUN --ablate blind` and the line of the commonest answer"
    )
    return found
