"""The model card of a saved model: a README.md with the metadata that the hub reads."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from chiasm.core import aliases
from chiasm.mllm.model import MLLM
from chiasm.unified.model import Unified

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
UNSTATED = "not stated"


@dataclass(frozen=True)
class Metric:
    """A result of an evaluation: value in [0, 1] with its 95 % interval over n questions."""

    task: str
    name: str
    value: float
    interval: tuple[float, float]
    n: int


@dataclass(frozen=True)
class Card:
    """What a model card states.

    name: of the model. layout: "chiasm" or the name of a published one. base_models: what it was
    made from, hub ids or folders. recipe: a run's recipe.json. license: an identifier of the hub
    ("apache-2.0"), "" where none is stated. repo: OWNER/NAME on the hub, "" for a folder.
    """

    name: str
    layout: str
    base_models: Sequence[str] = ()
    recipe: Mapping[str, Any] | None = None
    metrics: Sequence[Metric] = ()
    license: str = ""
    repo: str = ""
    generative: bool = False
    transformers: str = ""
    """The class of transformers that reads the folder, "" where none does."""
    parameters: int = field(default=0)

    def text(self) -> str:
        """README.md: metadata as YAML, then Markdown."""
        recipe = self.recipe or {}
        sections = [
            f"---\n{self._metadata()}\n---\n\n# {self.name}\n\n{self._summary()}",
            f"## Use\n\n{self._use()}",
            f"## Base models\n\n{_bullets(list(map(_named, self.base_models))) or 'None.'}",
            f"## Training\n\n{_training(recipe) if recipe else 'No recipe is known.'}",
            f"## Evaluation\n\n{self._evaluation()}",
            f"## Licence\n\n{self._licence()}",
        ]
        return "\n\n".join(sections) + "\n"

    def _metadata(self) -> str:
        known = [base for base in self.base_models if _HUB_ID.fullmatch(base)]
        results = [
            EvalResult(
                task_type="visual-question-answering",
                dataset_type=metric.task,
                dataset_name=metric.task,
                metric_type=metric.name,
                metric_name=f"{metric.name}, 95 % interval "
                f"{metric.interval[0]:.4f} to {metric.interval[1]:.4f}, n = {metric.n}",
                metric_value=round(metric.value, 4),
            )
            for metric in self.metrics
        ]
        data = ModelCardData(
            base_model=known or None,
            license=self.license or None,
            library_name="transformers" if self.transformers else "chiasm",
            pipeline_tag="any-to-any" if self.generative else "image-text-to-text",
            tags=["chiasm", "vision-language-model"],
            model_name=self.name,
            eval_results=results or None,
        )
        return data.to_yaml()

    def _summary(self) -> str:
        route = (
            "a unified model: one transformer reads and generates text and image tokens"
            if self.generative
            else "an MLLM: a vision encoder, a projector and a language model"
        )
        return f"A vision language model made with chiasm; {route}. {self.parameters:,} parameters."

    def _use(self) -> str:
        place = self.repo or "PATH_OF_THIS_FOLDER"
        lines = [
            "import chiasm",
            "",
            f'vlm = chiasm.load("{place}")',
            'print(vlm.ask("photo.png", "What is shown?"))',
        ]
        if self.generative:
            lines.append('vlm.generate_images("a red circle", n=1, seed=0)[0].save("circle.png")')
        blocks = [_code(lines)]
        if self.transformers:
            lines = [
                f"from transformers import AutoProcessor, {self.transformers}",
                "",
                f'model = {self.transformers}.from_pretrained("{place}")',
                f'processor = AutoProcessor.from_pretrained("{place}")',
            ]
            blocks.append(f"The layout is {self.layout}'s, which transformers reads too:")
            blocks.append(_code(lines))
        return "\n\n".join(blocks)

    def _evaluation(self) -> str:
        if not self.metrics:
            return "These weights have not been evaluated with `chiasm eval` or `chiasm.evaluate`."
        rows = ["| task | metric | value | 95 % interval | questions |", "|---|---|--:|---|--:|"]
        rows += [
            f"| {m.task} | {m.name} | {m.value:.1%} | {m.interval[0]:.1%} to {m.interval[1]:.1%} "
            f"| {m.n:,} |"
            for m in self.metrics
        ]
        return "\n".join(rows)

    def _licence(self) -> str:
        own = self.license or f'{UNSTATED} (`vlm.save(folder, license="...")` states it)'
        lines = [f"- this model: {own}"]
        lines += [f"- {_named(base)}: {license_of(base)}" for base in self.base_models]
        if self.base_models:
            lines.append("\nThe terms of the base models and of the data hold for this model too.")
        return "\n".join(lines)


def base_models(model: MLLM | Unified) -> list[str]:
    """What a model's configuration says it was made from: encoder and language model, or image
    tokenizer; those that were trained as part of its own run are not named."""
    if isinstance(model, MLLM):
        named: list[str | None] = [
            *(model.config.encoder or "").split("+"),
            model.config.language_model,
        ]
    else:
        named = [model.config.tokenizer]
    return [name.strip() for name in named if name and name.strip()]


def license_of(base: str) -> str:
    """The licence that a local base model's own card states."""
    file = Path(base).expanduser() / "README.md"
    if not file.is_file():
        return "see its own card" if _HUB_ID.fullmatch(base) else UNSTATED
    found = re.search(
        r"\A---\n(?:.*\n)*?license: *(\S+)", file.read_text(encoding="utf-8", errors="replace")
    )
    return found[1] if found else UNSTATED


def metrics_of(run: Path, weights: str) -> list[Metric]:
    """The complete results that `chiasm eval` left in a run's folder for these weights
    (eval/identity.weights_hash); those without images, or with other ones, are left out."""
    found = []
    for file in sorted(run.glob("predictions-*.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            of = result["run"]
            if not result["complete"] or of["weights"] != weights or of.get("ablation"):
                continue
            low, high = aliases.keys(result, aliases.RESULTS)["interval_by_image"]
            found.append(
                Metric(result["task"], result["measure"], result["accuracy"], (low, high),
                       result["n"])
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # another file of this name, or one that is being written
    return found


def class_of(folder: Path) -> str:
    """The class of transformers that a saved folder's config.json names, "" where none does."""
    file = folder / "config.json"
    if not file.is_file():
        return ""
    names = json.loads(file.read_text(encoding="utf-8")).get("architectures") or [""]
    return str(names[0])


@torch.no_grad()
def checksum(model: nn.Module) -> str:
    """Of a model's parameters: another one after every change that shows in their sums."""
    found = [p.detach() for p in model.parameters()]
    # Apple's GPUs have no float64.
    dtype = torch.float32 if found[0].device.type == "mps" else torch.float64
    sums = [p.sum(dtype=dtype) for p in found] + [p.to(dtype).square().sum() for p in found]
    return hashlib.sha256(torch.stack(sums).cpu().numpy().tobytes()).hexdigest()


def same_files(saved: Path, source: Path) -> bool:
    """Whether all weights and configurations of a saved model stand in another folder, byte for
    byte."""
    files = [
        file.relative_to(saved)
        for name in ("model.json", "config.json", "*.safetensors", "tokenizer.json")
        for file in saved.rglob(name)
    ]
    return all(
        (source / file).is_file() and _digest(saved / file) == _digest(source / file)
        for file in files
    )


def _digest(file: Path) -> bytes:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def _training(recipe: Mapping[str, Any]) -> str:
    stages = [
        f"| {stage['name']} | {stage['steps']:,} | "
        f"{', '.join(f'{group} {rate:g}' for group, rate in stage['lr'].items())} |"
        for stage in recipe.get("stages", ())
    ]
    table = ["| stage | steps | learning rates |", "|---|--:|---|", *stages]
    return "\n".join(
        [
            f"Data: `{_named(str(recipe.get('data', UNSTATED)))}`; seed {recipe.get('seed', 0)}. "
            "The whole recipe is in `recipe.json`: `chiasm train recipe.json --out FOLDER` trains "
            "it again.",
            "",
            *table,
        ]
    )


def _named(source: str) -> str:
    """A source without the folders of this machine."""
    path = Path(source)
    return f"{path.name} (local)" if path.is_absolute() else source


def _bullets(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```"])
