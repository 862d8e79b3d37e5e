"""make demo: both routes on easy-VQA, trained, evaluated alike, and laid side by side."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from rich.console import Console

from chiasm.core.device import model_device, resolve
from chiasm.core.errors import CheckpointError
from chiasm.core.progress import Show
from chiasm.core.protocols import ImageCodec, SamplingParams
from chiasm.core.sample import Image, Sample
from chiasm.data import easy_vqa
from chiasm.eval.drawing import score_drawings
from chiasm.eval.identity import versions
from chiasm.eval.judge import judge_accuracy, train_judge
from chiasm.eval.report import render
from chiasm.eval.runner import Result, evaluate, majority_baseline
from chiasm.eval.task import QuestionTask
from chiasm.generation.best_of import Drawing, draw
from chiasm.generation.generator import Generator
from chiasm.hub.load import load
from chiasm.mllm.gguf import smollm2
from chiasm.recipes.jobs.encoder import zero_shot
from chiasm.recipes.jobs.tokenizer import pixels_of, reconstruction
from chiasm.recipes.recipe import Model, Recipe, batch_unit, find
from chiasm.recipes.run import run as run_recipe
from chiasm.recipes.workers import side_by_side
from chiasm.train.log import Ledger
from chiasm.train.stage import Stage
from chiasm.vision.patches import from_array

ATTRIBUTES = {"color": easy_vqa.COLORS, "shape": easy_vqa.SHAPES}


class Settings:
    """How much of everything: the real demo, or the fast one that only shows the path works."""

    def __init__(self, fast: bool):
        self.fast = fast
        self.mllm_questions = 40 if fast else 2000
        self.unified_questions = 100 if fast else 0
        self.blind_questions = 20 if fast else 200
        self.drawings = 1 if fast else 20
        self.judge_steps = 20 if fast else 200
        self.judge_images = 64 if fast else None
        self.test_images = 50 if fast else 1000
        self.candidates = 2 if fast else 8

    def recipe(self, name: str) -> Recipe:
        recipe = find(name)
        if not self.fast:
            return recipe
        return replace(recipe, stages=tuple(_small(s, recipe.model) for s in recipe.stages))


def _small(stage: Stage, model: Model) -> Stage:
    """Two steps of at most 384 tokens or images."""
    unit = batch_unit(model, stage)
    stage = stage.with_batch_size(unit, min(stage.batch_size(unit), 384))
    return replace(stage, steps=2, log_every=1)


def run(folder: Path, fast: bool = False, seed: int = 0) -> Path:
    """The whole demo into a folder; the path of its report. Raises CheckpointError if the folder
    holds a demo already."""
    if (folder / "summary.json").exists():
        raise CheckpointError(f"{folder}: holds a finished demo; choose another --out or delete it")
    settings, console = Settings(fast), Console()
    console.print("Reading SmolLM2-135M (converted once, then cached)")
    smollm2()
    console.print(
        "Both routes are trained side by side.\n"
        "  [bold]mllm[/bold]     visual encoder (contrastive), then with SmolLM2-135M; questions\n"
        "  [bold]unified[/bold]  image tokenizer, then one transformer from scratch; questions, "
        "drawings"
    )
    began = time.perf_counter()
    lanes = side_by_side(
        {
            "mllm": partial(_mllm_lane, folder, settings, seed),
            "unified": partial(_unified_lane, folder, settings, seed),
        }
    )
    task = QuestionTask("easy-vqa", easy_vqa.load("test"), easy_vqa.ANSWERS)
    threads = max(1, torch.get_num_threads() // len(lanes))
    summary: dict = {
        "settings": {"fast": fast, "seed": seed, "threads_a_route": threads},
        **lanes["mllm"].value,
        **lanes["unified"].value,
        "majority": majority_baseline(task),
        "data": {"name": "easy-VQA", "test_questions": len(task.samples())},
        "wall_seconds": time.perf_counter() - began,
        "began": {name: outcome.began for name, outcome in lanes.items()},
        # Both at once: at most the sum of what each held at its fullest.
        "peak_memory_gb": sum(outcome.peak_memory_gb for outcome in lanes.values()),
        "versions": versions(),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    _say(console, summary)
    return render(folder)


def _mllm_lane(folder: Path, settings: Settings, seed: int, show: Show) -> dict:
    """Route A: the encoder, then the MLLM."""
    ledger = _train("encoder", folder / "encoder", settings, seed, show)
    known = [s for s in _test(settings) if s.meta["caption"]]
    zero = zero_shot(*load(folder / "encoder"), known)
    encoder = {
        "zero_shot_accuracy": zero["accuracy"],
        "n": zero["n"],
        "train_seconds": ledger.seconds,
    }
    ledger = _train(
        "mllm_smol", folder / "mllm", settings, seed, show, encoder=str(folder / "encoder")
    )
    answered = answers(folder, "mllm", settings, settings.mllm_questions, seed, ledger, show)
    return {"encoder": encoder, "mllm": answered}


def _unified_lane(folder: Path, settings: Settings, seed: int, show: Show) -> dict:
    """Route B: the image tokenizer, then the unified model and what it draws."""
    ledger = _train("tokenizer", folder / "tokenizer", settings, seed, show)
    tokenizer = _reconstruct(folder / "tokenizer", _test(settings))
    given = str(folder / "tokenizer")
    whole = _train("unified_nano", folder / "unified", settings, seed, show, tokenizer=given)
    questions = settings.unified_questions
    answered = answers(folder, "unified", settings, questions, seed, whole, show)
    judge, drawings = draw_and_judge(folder, settings, seed, show)
    quality = {key: tokenizer[key] for key in ("psnr", "code_usage")}
    return {
        "tokenizer": {**tokenizer, "train_seconds": ledger.seconds},
        "unified": {**answered, **quality, **drawings},
        "judge": judge,
    }


def _test(settings: Settings) -> list[Sample]:
    return easy_vqa.load("test")[: settings.test_images]


def _train(
    name: str, folder: Path, settings: Settings, seed: int, show: Show, **model: str
) -> Ledger:
    recipe = settings.recipe(name)
    changed = replace(recipe.model, **model) if model else recipe.model  # type: ignore[arg-type]
    seeded = replace(recipe, model=changed, seed=seed)
    return run_recipe(seeded, folder, show=show, check=False)  # it asks with wrong images itself


def _reconstruct(folder: Path, test: list[Sample]) -> dict[str, float]:
    """How well the tokenizer's images come back, and ten of them as an image."""
    model, processor = load(folder)
    pixels = pixels_of(processor, test[:10])
    with torch.no_grad():
        again = model.decode(model.encode(pixels.to(model_device(model)))).cpu()
    rows = [
        np.concatenate(list(side.permute(0, 2, 3, 1).numpy()), axis=1) for side in (pixels, again)
    ]
    from_array(np.concatenate(rows)).save(folder / "reconstructions.png")
    return reconstruction(model, processor, test)


def answers(
    folder: Path,
    route: str,
    settings: Settings,
    limit: int,
    seed: int,
    ledger: Ledger,
    show: Show,
) -> dict:
    """Accuracy on the test split, and with the images shuffled."""
    # Replies are of a word or two: reading the prompts is the work, and goes fastest in pieces that
    # fit a cache (LOG.md).
    respond = Generator(*load(folder / route), tokens=512, precision="auto")
    samples = easy_vqa.load("test")
    task = QuestionTask("easy-vqa", samples, easy_vqa.ANSWERS, limit=limit or None, seed=seed)
    sampling = SamplingParams(max_tokens=8)
    result = evaluate(task, respond, sampling, folder / route / "predictions.jsonl", show)
    few = QuestionTask(
        "blind", samples, easy_vqa.ANSWERS, limit=settings.blind_questions, seed=seed
    )
    blind = evaluate(few.blinded(seed), respond, sampling, folder / route / "blind.jsonl", show)
    return {
        **_numbers(result),
        "blind_accuracy": blind.accuracy,
        "blind_open_accuracy": blind.open_accuracy,
        "blind_n": blind.n,
        "train_seconds": ledger.seconds,
        "train_flops": ledger.flops,
        "parts": [asdict(entry) for entry in ledger.stages],
    }


def _numbers(result: Result) -> dict:
    names = (
        "n",
        "accuracy",
        "accuracy_interval",
        "open_accuracy",
        "yes_no_accuracy",
        "parse_failures",
        "seconds",
    )
    return {name if name != "seconds" else "eval_seconds": getattr(result, name) for name in names}


def draw_and_judge(
    folder: Path, settings: Settings, seed: int, show: Show, passes: int = 12
) -> tuple[dict[str, float], dict]:
    """The judge's own accuracy, and what it says of the drawings of every caption; passes: an
    image, of a model that draws by masked diffusion.

    The judge learns the training images and what the image tokenizer makes of them: of images
    alone, judges that differ in their seed differ by ten points on the same drawings (LOG.md)."""
    respond = Generator(*load(folder / "unified"), tokens=16384, precision="auto")
    with show("training the judge of the drawings", 1, 0):
        labelled = [s for s in easy_vqa.load("train") if s.meta["caption"]]
        again = reconstructed(labelled[: settings.judge_images], respond.processor.codec)
        judge = train_judge(
            [*labelled, *again],
            ATTRIBUTES,
            steps=settings.judge_steps,
            seed=seed + 1,
            device=resolve(),
        )
    known = [s for s in _test(settings) if s.meta["caption"]]
    sampling = SamplingParams(1.0, top_p=0.95, guidance=1.5, seed=seed, image_steps=passes)
    texts = [caption for caption in easy_vqa.CAPTIONS for _ in range(settings.drawings)]
    drawn: list[Drawing] = []
    groups = 4  # of captions: batches as large as serve speed, with progress between them
    size = math.ceil(len(texts) / groups)
    with show("drawing", groups, 0) as view:
        for number in range(groups):
            own = texts[number * size : (number + 1) * size]
            seeded = replace(sampling, seed=seed + 1000 * number)
            drawn += draw(respond, own, seeded, settings.candidates)
            view.advance()
    best, first = defaultdict(list), defaultdict(list)
    for text, drawing in zip(texts, drawn, strict=True):
        best[text].append(drawing.best)
        first[text].append(drawing.first)
    _keep(best, folder / "unified" / "drawings")
    wanted = {
        f"a {color} {shape}": {"color": color, "shape": shape}
        for color in easy_vqa.COLORS
        for shape in easy_vqa.SHAPES
    }
    score = score_drawings(judge, best, wanted)
    measured = judge_accuracy(judge, known)
    return {"accuracy": measured["joint"], **measured}, {
        "t2i_joint_accuracy": score["joint"],
        "t2i_color_accuracy": score["color"],
        "t2i_shape_accuracy": score["shape"],
        "t2i_distinct": score["distinct"],
        "t2i_per_caption": score["per_caption"],
        "t2i_n": score["n"],
        "t2i_best_of": settings.candidates,
        "t2i_tries": sum(drawing.tries for drawing in drawn) / len(drawn),
        "t2i_first_joint_accuracy": score_drawings(judge, first, wanted)["joint"],
    }


def reconstructed(
    samples: Sequence[Sample], codec: ImageCodec, batch: int = 64
) -> Iterator[Sample]:
    """The samples with their first image encoded and decoded again."""
    vocabulary = codec.vocabulary
    assert vocabulary is not None
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        slots = codec.encode([sample.images[0].load() for sample in part])
        ids = [torch.from_numpy(slot.input_ids) for slot in slots]
        codes = [own[vocabulary.is_code(own)] for own in ids]
        images = codec.decode_all(codes, [slot.grid for slot in slots])
        for sample, image in zip(part, images, strict=True):
            yield sample.map_parts(lambda p, i=image: Image(i) if isinstance(p, Image) else p)


def _keep(drawings: dict[str, list[PIL.Image.Image]], place: Path) -> None:
    place.mkdir(exist_ok=True)
    for caption, images in drawings.items():
        for number, image in enumerate(images):
            image.save(place / f"{caption.replace(' ', '-')}-{number}.png")


def _say(console: Console, summary: dict) -> None:
    for route in ("mllm", "unified"):
        part = summary[route]
        console.print(
            f"[bold]{route:8}[/bold] accuracy {part['accuracy']:.1%}, open questions "
            f"{part['open_accuracy']:.1%}, blind {part['blind_accuracy']:.1%}, "
            f"trained in {part['train_seconds']:.0f} s"
        )
    part = summary["unified"]
    console.print(
        f"drawings: {part['t2i_joint_accuracy']:.1%} right in colour and shape, the best of up to "
        f"{part['t2i_best_of']} by the model's own reading "
        f"({part['t2i_first_joint_accuracy']:.1%} without); "
        f"reconstruction {part['psnr']:.1f} dB; "
        f"the whole demo took {summary['wall_seconds']:.0f} s"
    )
