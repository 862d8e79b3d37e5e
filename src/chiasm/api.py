"""The Python API: load a model, ask it, train and evaluate. docs/api.md shows each call.

Its names are those of the package: `chiasm.load`, `chiasm.VLM`, `chiasm.train`, `chiasm.evaluate`,
`chiasm.Callback`; `chiasm.data.loader` is in data/dataset.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from chiasm.core import registry
from chiasm.core.batch import Batch
from chiasm.core.config import nearest, to_dict
from chiasm.core.device import computing_on, model_device, resolve
from chiasm.core.errors import CheckpointError, ConfigError, DataError, NotGenerativeError
from chiasm.core.progress import Bar, silent
from chiasm.core.protocols import SamplingParams
from chiasm.core.protocols import Task as TaskProtocol
from chiasm.core.sample import Sample
from chiasm.data.formats.chat import Messages, conversation_of
from chiasm.data.processor import Processor
from chiasm.eval.conversation import group_key
from chiasm.eval.identity import weights_hash
from chiasm.eval.runner import Result
from chiasm.eval.runner import evaluate as run_evaluation
from chiasm.generation.best_of import draw
from chiasm.generation.generator import Generator
from chiasm.hub.card import (
    Card,
    Metric,
    base_models,
    checksum,
    class_of,
    metrics_of,
    same_files,
)
from chiasm.hub.formats import CheckpointFormat
from chiasm.hub.generic import GenericVLM
from chiasm.hub.generic_replies import GenericGenerator
from chiasm.hub.load import layout_of, move
from chiasm.hub.load import load as load_folder
from chiasm.hub.mllm import replace_projector
from chiasm.hub.save import Layout, replace_folder, save
from chiasm.hub.source import is_hub_id, local_folder
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors import Projector
from chiasm.recipes.eval_task import Asked, for_runs
from chiasm.recipes.evaluate import How, ask_model
from chiasm.recipes.fresh import fresh
from chiasm.recipes.recipe import NAMES, Recipe, find, run_folder, with_overrides
from chiasm.recipes.run import Resume
from chiasm.recipes.run import run as run_recipe
from chiasm.train.callbacks import Callback
from chiasm.train.log import Ledger
from chiasm.unified.model import Unified

__all__ = ["VLM", "Callback", "Output", "Run", "evaluate", "load", "train"]

Source = str | os.PathLike[str]
DRAWING = {"temperature": 1.0, "top_p": 0.95, "guidance": 1.5}
"""How images are generated unless it is said otherwise, as by `chiasm generate`."""


@dataclass(frozen=True)
class Output:
    """What `vlm(batch)` gives.

    loss: scalar with a graph, the mean over supervised tokens; None where the batch has none.
    loss_parts: the means of its parts by name ("text", "image", ...), detached.
    """

    loss: Tensor | None
    loss_parts: dict[str, Tensor]
    hidden: Tensor
    """[B T D], after the last norm."""
    model: MLLM | Unified = field(repr=False)

    @cached_property
    def logits(self) -> Tensor:
        """[B T V] with a graph, computed when first asked for: training needs only those of the
        supervised tokens, and all of them are the largest tensor of a step. Of a model trained by
        masked diffusion they are of the batch as it was masked for the loss."""
        return self.model.logits(self.hidden)


class VLM:
    """A vision language model of either route with its processor.

    model: the torch module (`vlm.model.parameters()`); it is loaded in evaluation mode. processor:
    conversations to batches, `vlm.processor([messages, ...])`.
    """

    def __init__(
        self,
        model: MLLM | Unified | GenericVLM,
        processor: Processor,
        source: str = "",
        layout: CheckpointFormat | Layout = "chiasm",
        recipe: Mapping[str, Any] | None = None,
    ):
        self.model, self.processor = model, processor
        self.source, self.recipe = source, recipe
        self.layout: CheckpointFormat | Layout = layout
        self._evaluated: list[tuple[str, Metric]] = []
        self._generator: Generator | GenericGenerator | None = None

    def __repr__(self) -> str:
        kind = "unified" if self.can_generate_images else "MLLM"
        kind = self.model.kind if isinstance(self.model, GenericVLM) else kind
        return f"VLM({kind}, {self.source or 'in memory'}, {self.device})"

    @property
    def device(self) -> torch.device:
        return model_device(self.model)

    @property
    def can_generate_images(self) -> bool:
        return bool(self.processor.codec.codes_per_image)

    def to(self, device: str | torch.device) -> VLM:
        """Move the model, as core.device.resolve names devices; returns itself."""
        move(self.model, self.processor, resolve(device))
        self._generator = None
        return self

    @property
    def generator(self) -> Generator | GenericGenerator:
        """Generates replies to samples (generation/generator.py), made when first used."""
        if self._generator is None:
            if isinstance(self.model, GenericVLM):
                self._generator = GenericGenerator(self.model, self.processor)  # type: ignore[arg-type]
            else:
                self._generator = Generator(self.model, self.processor)
        return self._generator

    def ask(self, image: Any, text: str, **sampling: Any) -> str:
        """The reply to a question about an image.

        image: a path, encoded bytes, a PIL image or a data URL, several of them as a list, or None
        for text alone. A string is a path or a data URL, never words. sampling: fields of
        core.protocols.SamplingParams, by default greedy and at most 64 tokens (max_tokens). Raises
        DataError for an image that cannot be read, ConfigError for an unknown field.
        """
        if not isinstance(text, str):
            raise DataError(f"ask: the text is a {type(text).__name__}; give ask(image, text)")
        several = isinstance(image, (list, tuple))
        images = [] if image is None else image if several else [image]
        parts: list[dict[str, Any]] = [{"type": "image", "image": each} for each in images]
        parts.append({"type": "text", "text": text})
        pieces = self.stream([{"role": "user", "content": parts}], **sampling)
        return "".join(piece for piece in pieces if isinstance(piece, str))

    def stream(
        self, messages: Messages | Sample, **sampling: Any
    ) -> Iterator[str | PIL.Image.Image]:
        """The reply to OpenAI messages, piece by piece: text as soon as it is known, and images
        where a unified model is allowed some (max_images=1). sampling: as of ask."""
        chosen = _sampling(sampling)
        sample = conversation_of(messages)
        if sample.turns[-1].role != "user":
            raise DataError("the last message must be the user's; a reply to it is generated")
        for _, piece in self.generator([sample], chosen):
            if piece.text:
                yield piece.text
            if piece.image is not None:
                yield piece.image

    def generate_images(
        self, text: str, n: int = 1, seed: int = 0, best_of: int = 4, **sampling: Any
    ) -> list[PIL.Image.Image]:
        """n images of a text. best_of: each is the best by the model's own judgement of up to so
        many (generation/best_of.py); 1 keeps the first. sampling: as of ask, by default temperature
        1, top_p 0.95 and guidance 1.5. Raises NotGenerativeError for an MLLM."""
        if not self.can_generate_images:
            raise NotGenerativeError(
                "generate_images: this model is an MLLM, which reads images and generates text; "
                "load a unified model (chiasm train unified_nano trains one)"
            )
        if n < 1 or best_of < 1:
            raise ConfigError(f"generate_images: n {n}, best_of {best_of}; give at least 1 each")
        chosen = _sampling({**DRAWING, **sampling, "seed": seed})
        generator = self.generator
        assert isinstance(generator, Generator)
        return [each.best for each in draw(generator, [text] * n, chosen, best_of)]

    def __call__(self, batch: Batch) -> Output:
        """The loss and the logits of a batch, which is moved to the model's device; one forward
        pass. Gradients reach every parameter that requires them."""
        if isinstance(self.model, GenericVLM):
            raise ConfigError(
                f"this model runs by its own class, {self.model.kind}: call vlm.model.model with "
                "what vlm.processor.inputs gives"
            )
        batch = batch.to(self.device)
        if not len(batch.supervised):
            return Output(None, {}, self.model(batch), self.model)
        hidden: list[Any] = []
        hook = self.model.register_forward_hook(lambda _module, _given, out: hidden.append(out))
        try:
            loss = self.model.loss(batch)
        finally:
            hook.remove()
        parts = {
            name: torch.as_tensor(value) / count
            for name, (value, count) in loss.parts.items()
            if count
        }
        return Output(loss.sum / loss.count, parts, hidden[0], self.model)

    def replace_projector(self, projector: Projector) -> VLM:
        """Put another projector between the encoder and the language model of an MLLM; returns
        itself. Raises ConfigError where its tokens do not fit, or for a unified model."""
        if not isinstance(self.model, MLLM):
            raise ConfigError("replace_projector: a unified model has no projector; load an MLLM")
        replace_projector(self.model, self.processor, projector)
        self.layout, self._generator = "chiasm", None  # another layout may not express it
        return self

    def save(
        self, folder: Source, *, license: str = "", layout: Layout | None = None
    ) -> Path:  # fmt: skip
        """Write the model with a model card, for `chiasm.load`; the model stays as it is.

        layout: "chiasm"; or "hf", which transformers loads too, where a published layout can
        express the model; by default the one it was loaded in. license: an identifier as of the hub
        ("apache-2.0"). An earlier saved model in the folder is replaced when the new one is whole.
        Raises CheckpointError for a folder that holds anything else, ConfigError for a model that
        the layout cannot express.
        """
        folder = Path(folder).expanduser()
        replace_folder(folder, lambda place: self._write(place, folder.name, "", license, layout))
        return folder

    def push_to_hub(
        self,
        repo: str,
        *,
        license: str = "",
        layout: Layout | None = None,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Save and upload to the repository OWNER/NAME of the Hugging Face hub, which is made where
        it does not exist; the commit's address. token: by default the one of `hf auth login`."""
        import huggingface_hub

        api = huggingface_hub.HfApi(token=token)
        with TemporaryDirectory() as folder:
            self._write(Path(folder), repo.rpartition("/")[2], repo, license, layout)
            api.create_repo(repo, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message="Upload a model saved by chiasm"
            )
        return str(getattr(commit, "commit_url", commit))

    def _write(
        self, folder: Path, name: str, repo: str, license: str, layout: Layout | None
    ) -> None:
        written = save(self.model, self.processor, folder, layout or self.layout)
        if self.recipe is not None:
            (folder / "recipe.json").write_text(json.dumps(self.recipe, indent=2))
        published = self.layout != "chiasm" or is_hub_id(self.source)
        bases = [self.source]
        if not published and not isinstance(self.model, GenericVLM):
            bases = base_models(self.model)
        card = Card(
            name,
            written,
            bases,
            self.recipe,
            self._metrics(folder),
            license,
            repo,
            self.can_generate_images,
            class_of(folder),
            sum(parameter.numel() for parameter in self.model.parameters()),
        )
        (folder / "README.md").write_text(card.text(), encoding="utf-8")

    def _metrics(self, folder: Path) -> list[Metric]:
        """Results of the weights as they were just saved: those of this session, and those that
        `chiasm eval` left beside the same files."""
        now = checksum(self.model)
        own = {each.task: each for checksum, each in self._evaluated if checksum == now}
        source = local_folder(self.source) if self.source else Path()
        if self.source and source.is_dir() and same_files(folder, source):
            found = {each.task: each for each in metrics_of(source, weights_hash(source))}
            own = {**found, **own}
        return list(own.values())

    def remember(self, result: Result) -> None:
        """Keep an evaluation's result for the model card, as long as the weights stay the same."""
        metric = Metric(result.task, result.measure, result.accuracy, result.interval, result.n)
        self._evaluated.append((checksum(self.model), metric))


def load(
    source: Source | Run, device: str | torch.device = "auto", allow_custom: Sequence[str] = ()
) -> VLM:
    """A vision language model, in evaluation mode.

    source: the folder of a run or of a saved model, a folder in a published layout (LLaVA,
    PaliGemma, Idefics3, SmolVLM, Chameleon, Emu3), OWNER/NAME of the Hugging Face hub in one of
    these, or a recipe (a name, a Python file, a recipe.json), whose model then has fresh weights.
    device: "auto" (CUDA, else MPS, else the CPU), "cpu", "cuda", "cuda:1", "mps". allow_custom:
    modules or .py files with parts of your own that the model may have. Raises CheckpointError
    where there is no model or one of another kind, ConfigError for a device that is not there.
    """
    name, place = os.fspath(source), resolve(device)
    registry.allow_custom(*allow_custom)
    if _is_recipe(name):
        recipe = find(name)
        model, processor = fresh(recipe)
        move(model, processor, place)
        return VLM(_checked(model, name), processor, "", "chiasm", to_dict(recipe))
    folder = local_folder(name)
    model, processor = load_folder(folder, place)
    layout = "hf" if isinstance(model, GenericVLM) else layout_of(folder) or "chiasm"
    return VLM(_checked(model, name), processor, name, layout, _recipe_of(folder))


@dataclass(frozen=True)
class Run:
    """A finished training run: its folder, which `chiasm.load` and `chiasm.evaluate` take as they
    take this, and what it cost by stage (steps, seconds, tokens, images, FLOPs)."""

    folder: Path
    cost: Ledger

    def __fspath__(self) -> str:
        return str(self.folder)

    def load(self, device: str | torch.device = "auto") -> VLM:
        return load(self.folder, device)


def train(
    recipe: Source | Recipe,
    data: Source | None = None,
    out: Source | None = None,
    device: str = "",
    *,
    init: Source | Run | None = None,
    resume: Resume = "no",
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    check: bool = True,
    **overrides: Any,
) -> Run:
    """Train a recipe, as `chiasm train` does.

    recipe: a name ("mllm_smol"), a Python file, a run's recipe.json, or a Recipe. data: as of
    `chiasm train --data`, by default the recipe's own. out: folder of the run, by default
    runs/RECIPE. init: the run, folder or hub id of the model that training begins with; overrides
    `model.X` then set X of that model anew (docs/train.md). resume: "yes" continues the run in
    `out`, "auto" starts or continues it. check: see whether the model uses the image
    (image_use.json in the run's folder). overrides: fields of the recipe by dotted name,
    **{"stages.0.steps": 100}. Raises ConfigError for unknown fields and a recipe that cannot be
    trained, CheckpointError where `out` holds a run.
    """
    if isinstance(recipe, Recipe):
        chosen, default = recipe, None
    else:
        chosen, default = find(os.fspath(recipe)), os.fspath(recipe)
    settings = {name: _as_text(value) for name, value in overrides.items()}
    if data is not None:
        settings["data"] = os.fspath(data)
    if init is not None:
        settings["init"] = os.fspath(init)
    chosen = with_overrides(chosen, settings)
    if out is None and default is None:
        raise ConfigError("train: give out=, the folder of the run")
    folder = Path(out).expanduser() if out is not None else run_folder(str(default))
    with computing_on(device):
        cost = run_recipe(chosen, folder, resume, Bar if progress else silent, callbacks, check)
    return Run(folder, cost)


def evaluate(
    model: VLM | Run | Source,
    task: str | os.PathLike[str] | TaskProtocol,
    *,
    limit: int = 2000,
    seed: int = 0,
    max_tokens: int = 32,
    metric: str = "",
    prompt: str = "",
    data: Source | None = None,
    split: str = "",
    columns: str = "",
    images: Source | None = None,
    download: bool = False,
    device: str = "",
    progress: bool = True,
) -> Result:
    """Ask a model every question of a task: `.accuracy` in [0, 1], its 95 % `.interval`, and more.

    model: a VLM, or a run, whose replies are kept in its folder and not asked for again. task: a
    benchmark ("pope", "vqav2", ...; its files in `data`, by default data/TASK), "easy-vqa", any
    data set that `chiasm train` reads, or an object with name, samples() and score(). limit: at
    most this many questions, drawn by the seed; 0 for all. The other arguments are those of `chiasm
    eval`. Questions that could not be asked are in `.errors` and in no accuracy. Raises DataError
    where none could be, ConfigError for a metric that is not of replies.
    """
    sampling = SamplingParams(max_tokens=max_tokens)
    if not isinstance(task, (str, os.PathLike)):
        vlm = model if isinstance(model, VLM) else load(model, device or "auto")
        return _evaluate_task(vlm, task, sampling, progress)
    asked = Asked(
        os.fspath(task), None if data is None else Path(data), split, download, metric, columns,
        None, limit, seed, prompt=prompt, images=None if images is None else Path(images),
    )  # fmt: skip
    if (metric or asked.usual_metric()) in ("perplexity", "reconstruction", "drawing"):
        raise ConfigError(
            f"evaluate: {metric or asked.usual_metric()} is not a score of replies; "
            "use chiasm eval --metric"
        )
    if isinstance(model, VLM):
        asked = for_runs(asked, [Path(model.source)] if model.source else [])
        return _evaluate_task(model, asked.question_task(), sampling, progress)
    name = os.fspath(model)
    folder = local_folder(name)
    asked = for_runs(asked, [folder])
    questions = asked.question_task()
    home = Path("runs") / folder.name if is_hub_id(name) else folder
    file = home / f"predictions-{questions.name}.jsonl"
    with computing_on(device):
        show = Bar if progress else silent
        return ask_model(folder, asked, questions, How(max_tokens=max_tokens), file, show)[""]


def _evaluate_task(
    vlm: VLM, task: TaskProtocol, sampling: SamplingParams, progress: bool
) -> Result:
    groups = [group_key(sample) for sample in task.samples()]
    show = Bar if progress else silent
    result = run_evaluation(task, vlm.generator, sampling, show=show, groups=groups)
    vlm.remember(result)
    return result


def _sampling(given: Mapping[str, Any]) -> SamplingParams:
    known = vars(SamplingParams())
    for name in given:
        if name not in known:
            raise ConfigError(
                f"no sampling option '{name}'{nearest(name, known)}; there are {', '.join(known)}"
            )
    return SamplingParams(**given)


def _is_recipe(source: str) -> bool:
    """Whether a source names a recipe: a file of one, or a known name where no such folder is."""
    path = Path(source)
    return path.suffix in (".py", ".json") or (source in NAMES and not path.is_dir())


def _checked(model: Any, source: str) -> MLLM | Unified | GenericVLM:
    if not isinstance(model, (MLLM, Unified, GenericVLM)):
        raise CheckpointError(
            f"{source}: holds a {type(model).__name__}, which generates no replies; give an MLLM "
            "or a unified model"
        )
    return model


def _recipe_of(folder: Path) -> Mapping[str, Any] | None:
    file = folder / "recipe.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _as_text(value: Any) -> str:
    """A value of Python as `with_overrides` reads it."""
    return value if isinstance(value, str) else json.dumps(to_dict(value))
