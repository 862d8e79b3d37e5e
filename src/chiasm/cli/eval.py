"""chiasm eval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from chiasm.cli.options import DeviceOptions, TaskOptions


@dataclass(kw_only=True)
class Eval(TaskOptions, DeviceOptions):
    """Ask a model every question of a test set; its score with an interval, parse failures."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Folder of a trained model of either route, or of one in a published layout, or OWNER/NAME of
    the Hugging Face hub; or a contrastive encoder, ours or one of transformers (CLIP, SigLIP), for
    zero-shot classification and retrieval."""
    ablate: tuple[Literal["blind", "shuffled", "resolution"], ...] = ()
    """Ask once more with less to see: blind (no image), shuffled (the image of another question),
    resolution (images at half, a quarter, an eighth of their size)."""
    check: bool = True
    """Ask up to 200 of the questions also with another image, and say whether the model uses the
    image."""
    precision: Literal["auto", "bfloat16", "none"] = "none"
    """bfloat16 is faster on some machines; the share of replies that then depend on the batch is
    told."""
    out: Path | None = None
    """File for the predictions (default RUN/predictions-TASK.jsonl), with the result beside it as
    .json. Replies that are there already are not asked for again."""
    export: Path | None = None
    """The table as Markdown (.md) or everything as JSON (.json)."""
    prompt: str = ""
    """A line after each question, such as "Answer with a single word."; with {question} in it, it
    replaces the question's text. Without it nothing is added."""
    images: Path | None = None
    """The folder that image paths are relative to (default: the file's own); / allows absolute
    paths."""
    download: bool = False
    """Fetch the benchmark from the Hugging Face hub into the folder of its files first."""
    match_harness: Literal["lmms-eval"] | None = None
    """Score as lmms-eval 0.7.3 does, defects included, to compare with its numbers; the prompts
    stay ours."""
    by_likelihood: bool = False
    """Choose the likeliest of a question's options, or of --labels, instead of generating."""
    labels: Path | None = None
    """File with one label or class name a line (default classes.txt beside the data, else the test
    set's answers)."""
    prompts: tuple[str, ...] = ()
    """For zero-shot, texts with {} for the class's name (default CLIP's ensemble of 7)."""
    num_images: int = 4
    """Images a prompt, for tasks whose images are generated."""
    clip_model: Path | None = None
    """A contrastive encoder that gives generated images a CLIPScore, and a Fréchet distance from
    real ones."""

    def __call__(self) -> None:
        self.use_device()
        from chiasm.eval.zero_shot import PROMPTS
        from chiasm.recipes.eval_task import Asked
        from chiasm.recipes.evaluate import How, evaluate_command

        how = How(
            self.ablate, self.batch_size, self.max_tokens, self.precision, self.by_likelihood,
            self.labels, self.history, self.check,
        )  # fmt: skip
        asked = Asked(
            self.task, self.data, self.split, self.download, self.metric, self.columns,
            self.match_harness, self.limit, self.seed, self.turns, self.prompt, self.images,
        )  # fmt: skip
        evaluate_command(
            self.run,
            asked,
            how,
            out=self.out,
            export_to=self.export,
            prompts=self.prompts or PROMPTS,
            num_images=self.num_images,
            clip_model=self.clip_model,
        )
