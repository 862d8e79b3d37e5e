"""chiasm eval: a trained model, a test set, a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chiasm.core.errors import ConfigError, DataError
from chiasm.core.progress import Bar, Show
from chiasm.core.protocols import SamplingParams, StreamChunk
from chiasm.core.sample import Sample
from chiasm.eval.ablation import SCALES, Ablation, Variant, variants
from chiasm.eval.conversation import History, group_key
from chiasm.eval.export import check_export, export
from chiasm.eval.identity import LOOKED_AT, code_hash, prompt_hashes, versions, weights_hash
from chiasm.eval.image_use import ImageUse, image_use, question_baseline, shuffled_questions
from chiasm.eval.perplexity import modality_perplexity
from chiasm.eval.predictions import key_of, read_predictions, run_of
from chiasm.eval.runner import Result, evaluate, flip_rate, majority_baseline
from chiasm.eval.task import QuestionTask
from chiasm.eval.zero_shot import PROMPTS, retrieval, zero_shot_accuracy
from chiasm.generation.generator import Generator
from chiasm.generation.likelihood import LabelResponder
from chiasm.hub.source import is_hub_id, local_folder
from chiasm.nn.precision import Precision
from chiasm.recipes.chat import responder
from chiasm.recipes.eval_images import contrastive, draw_command, reconstruct_command, report_scores
from chiasm.recipes.eval_task import Asked, for_runs, own_labels
from chiasm.recipes.image_check import message
from chiasm.vision.dual import Dual


@dataclass(frozen=True)
class How:
    """How a model is asked. ablate: to ask once more with less to see (eval/ablation.py). batch:
    questions handed over at once, 0 for as many as fit. precision: as in nn/precision.py. history:
    what stands between the questions of a conversation (eval/conversation.py). check: ask some
    questions with another image too, to see whether the model uses it (eval/image_use.py)."""

    ablate: tuple[Ablation, ...] = ()
    batch: int = 0
    max_tokens: int = 32
    precision: Precision = "none"
    by_likelihood: bool = False
    labels: Path | None = None
    history: History = "gold"
    check: bool = False


DEFAULT = How()
MOST_LINES = 12
"""Turns or kinds of questions in the printed table; the result's file has all."""
CHECK = "image-check"
"""The name of the questions that are asked with another image to see whether it is used."""
FLIPS = 64
"""Questions asked again one by one where rounding may turn replies."""


def evaluate_command(
    run: Path,
    asked: Asked,
    how: How = DEFAULT,
    *,
    out: Path | None = None,
    export_to: Path | None = None,
    prompts: Sequence[str] = PROMPTS,
    num_images: int = 4,
    clip_model: Path | None = None,
) -> None:
    """Evaluate, print the table, keep the predictions. Raises DataError at the end if a question
    could not be asked."""
    # What is kept of a repository of the hub does not belong into the hub's cache.
    home = Path("runs") / run.name if is_hub_id(run) else run
    run = local_folder(run)
    asked = for_runs(asked, [run])
    if export_to is not None:
        check_export(export_to)
    if asked.metric == "perplexity":
        samples = asked.samples()[: asked.limit or None]
        report_scores(modality_perplexity(responder(run), samples), asked.name, "perplexity")
        return
    if asked.metric == "reconstruction":
        reconstruct_command(run, asked, clip_model)
        return
    if (asked.metric or asked.usual_metric()) == "drawing":
        draw_command(run, asked, out or home / f"drawn-{asked.name}", num_images, clip_model)
        return
    task = asked.question_task()
    dual = contrastive(run)
    if dual is not None:
        _zero_shot(dual, asked, task, how, prompts, out)
        return
    file = out or home / f"predictions-{task.name}.jsonl"
    results = ask_model(run, asked, task, how, file)
    checked = results.pop(CHECK, None)
    _print(results, majority_baseline(task), question_baseline(task))
    use = _image_use(task, file) if checked is not None else None
    if use is not None:
        Console().print(message(use), soft_wrap=True)
    if export_to is not None:
        rows = [_row(name, result) for name, result in results.items()]
        record = {name or "plain": result.to_dict() for name, result in results.items()}
        export(export_to, rows, record | {"versions": versions()})
    failed = sum(len(result.errors) for result in results.values())
    if failed:
        raise DataError(
            f"{failed} of the questions could not be asked, see {out or home}; mend or remove them"
        )


def ask_model(
    run: Path, asked: Asked, task: QuestionTask, how: How, file: Path, show: Show = Bar
) -> dict[str, Result]:
    """Result of every variant by its name, with how.check also of CHECK where there are questions
    about different images; replies go to `file`, those of a variant beside it, and are not asked
    for again where they are there already."""
    if how.history == "own" and asked.turns == "last":
        raise ConfigError(
            "--history own asks all questions of a conversation to go on from the replies; "
            "leave out --turns last (the table has a line for every turn)"
        )
    labels = _labels(asked, task, how.labels) if how.by_likelihood else None
    model = _Model(run, how.precision, labels)
    sampling = SamplingParams(max_tokens=how.max_tokens)
    shown = variants(task, how.ablate, asked.seed)
    keys = {"": [group_key(sample) for sample in task.samples()]}
    pairs = shuffled_questions(task.samples()) if how.check else []
    if pairs:
        shown.append(Variant(CHECK, task.showing([sample for _, sample in pairs])))
        keys[CHECK] = [keys[""][place] for place, _ in pairs]
    record = {
        "weights": weights_hash(run),
        "sampling": asdict(sampling),
        "precision": how.precision,
        "prompt": asked.prompt,
        "likelihood_of": "" if not how.by_likelihood else str(how.labels or "the answers"),
        "versions": versions(),
    }
    results = {}
    for variant in shown:
        own = _file_of(variant.name, file)
        results[variant.name] = evaluate(
            variant.task,
            model,
            sampling,
            own,
            show,
            chunk=how.batch or 256,
            run=model.identity({**record, "ablation": variant.name}, variant.task.samples(), own),
            groups=keys.get(variant.name, keys[""]),
            history=how.history,
        )
    if how.precision != "none" and not how.by_likelihood:
        few = task.samples()[:FLIPS]
        share = flip_rate(few, model, sampling)
        Console().print(
            f"{share:.1%} of {len(few)} replies are others when asked one by one: rounding to "
            f"{how.precision} makes them depend on the batch"
        )
    return results


def _file_of(variant: str, file: Path) -> Path:
    """Where the replies of a variant are."""
    return file.with_name(f"{file.stem}-{variant}.jsonl") if variant else file


def _image_use(task: QuestionTask, file: Path) -> ImageUse | None:
    """What the image adds, from the replies that ask_model left; None where no question has one
    with both images."""
    samples = task.samples()
    own, other = read_predictions(file), read_predictions(_file_of(CHECK, file))
    places = [place for place, _ in shuffled_questions(samples)]
    both = [
        (own[place]["correct"], record["correct"], group_key(samples[place]))
        for place, record in zip(places, other, strict=True)
        if own[place]["correct"] is not None and record["correct"] is not None
    ]
    return image_use(*zip(*both, strict=True)) if both else None


class _Model:
    """A `Generate` whose model is read when there is something to ask it: a comparison of runs that
    were evaluated before then takes seconds."""

    def __init__(
        self,
        run: Path,
        precision: Precision,
        labels: Callable[[Sample], Sequence[str]] | None,
    ):
        self.run, self.labels = run, labels
        self.precision: Precision = precision

    @cached_property
    def generator(self) -> Generator:
        return responder(self.run, precision=self.precision)

    def __call__(
        self, samples: Sequence[Sample], sampling: SamplingParams
    ) -> Iterator[tuple[int, StreamChunk]]:
        if self.labels is not None:
            return LabelResponder(self.generator, self.labels)(samples, sampling)
        return self.generator(samples, sampling)

    def identity(self, record: Mapping, samples: Sequence[Sample], file: Path) -> dict:
        """The record with the hashes of the prompts. Those that stand beside the predictions are
        taken where the same code made them of the same record and questions."""
        noted = {
            "path": str(self.run.resolve()),
            "code": code_hash(),
            "looked_at": [key_of(sample) for sample in samples[:LOOKED_AT]],
        }
        made = ("code", "looked_at")
        before = run_of(file) or {}
        same = all(before.get(name) == value for name, value in record.items())
        if same and all(before.get("noted", {}).get(name) == noted[name] for name in made):
            return {**before, "noted": noted}
        return {**record, **prompt_hashes(self.generator.processor, samples), "noted": noted}


def _labels(
    asked: Asked, task: QuestionTask, file: Path | None
) -> Callable[[Sample], Sequence[str]]:
    """A question's own choices, else those of all questions."""
    common = asked.labels(task, file)

    def of(sample: Sample) -> Sequence[str]:
        return own_labels(sample) or common

    return of


def _zero_shot(
    dual: Dual,
    asked: Asked,
    task: QuestionTask,
    how: How,
    prompts: Sequence[str],
    out: Path | None,
) -> None:
    """Retrieval where samples have captions, else classes by their names; of every variant."""
    if "blind" in how.ablate:
        raise ConfigError("a contrastive encoder does nothing without an image; leave out blind")
    classes, records = asked.labels(task, how.labels), {}
    for variant in variants(task, how.ablate, asked.seed):
        records[variant.name or "plain"] = _zero_shot_once(dual, variant, classes, prompts)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        record = records.pop("plain") | records
        out.write_text(json.dumps(record, indent=2, ensure_ascii=False))


def _zero_shot_once(
    dual: Dual, variant: Variant, classes: list[str], prompts: Sequence[str]
) -> dict:
    samples = variant.task.samples()
    if any(sample.meta.get("captions") for sample in samples):
        scores, what = retrieval(dual, samples), f"retrieval, {len(samples)} images"
    else:
        scores = zero_shot_accuracy(dual, samples, classes, prompts)
        what = f"zero-shot, {len(samples)} images, {len(classes)} classes"
    report_scores(scores, variant.task.name, f"{what}{', ' * bool(variant.name)}{variant.name}")
    return {"task": variant.task.name, "n": len(samples), "prompts": list(prompts), **scores}


def _row(name: str, result: Result) -> dict[str, object]:
    """A variant in a table for others."""
    low, high = result.interval_by_image
    return {
        "task": result.task,
        "images": name or "as they are",
        "n": result.n,
        result.measure: round(result.accuracy, 4),
        "95 % from": round(low, 4),
        "to": round(high, 4),
        "parse failures": result.parse_failures,
        "refusals": result.refusals,
        "cut off": result.truncations,
        "failed": len(result.errors),
    }


def _print(results: dict[str, Result], majority: dict, by_question: float) -> None:
    plain = results[""]
    table = Table(title=f"{plain.task}, n = {plain.n}")
    for heading in ("", plain.measure, "95 %", "always the commonest"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name in ("accuracy", "open_accuracy", "yes_no_accuracy"):
        value, base = getattr(plain, name), majority[name]
        if value is not None:
            whole = name == "accuracy"
            label = {"accuracy": "all"}.get(name, name.removesuffix("_accuracy").replace("_", "/"))
            table.add_row(label, f"{value:.1%}", _span(plain) if whole else "", f"{base:.1%}")
    table.add_row("by the question alone", "", "", f"{by_question:.1%}")
    for name, value in plain.metrics.items():
        table.add_row(name, f"{value:.4g}", "", "")
    said = ", after the model's own replies" if plain.history == "own" else ""
    for turn, found in list(plain.turns.items())[:MOST_LINES]:
        behind = said if turn != "1" else ""
        table.add_row(f"turn {turn}{behind} (n {found['n']})", f"{found['accuracy']:.1%}", "", "")
    kinds = set(plain.categories) - {"open", "yes/no", "all"}
    if kinds and 1 < len(plain.categories) <= MOST_LINES:
        for kind, found in plain.categories.items():
            table.add_row(f"{escape(kind)} (n {found['n']})", f"{found['accuracy']:.1%}", "", "")
    for name, result in results.items():
        if name:
            table.add_row(f"all, {SAID[name]}", f"{result.accuracy:.1%}", _span(result), "")
    console = Console()
    console.print(table)
    known = f", {plain.resumed} of them asked before" if plain.resumed else ""
    console.print(
        f"{plain.parse_failures} replies were none of the answers, {plain.refusals} declined, "
        f"{plain.truncations} were cut off; {plain.n} in {plain.seconds:.0f} s{known}"
    )


SAID = {
    "blind": "without images",
    "shuffled": "images of other questions",
    **{name: f"images at {scale:g} of their size" for name, scale in SCALES.items()},
}


def _span(result: Result) -> str:
    """Bootstrap over images: questions about one stand or fall together."""
    low, high = result.interval_by_image
    return f"{low:.1%} - {high:.1%}"
