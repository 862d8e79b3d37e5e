"""chiasm eval: a trained model, a test set, a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chiasm.core.errors import DataError
from chiasm.core.protocols import Sampling
from chiasm.core.sample import Sample
from chiasm.eval.perplexity import modality_perplexity
from chiasm.eval.prompts import draw_prompts, mean_clip_score, rules_apply, score_by_rules
from chiasm.eval.runner import Result, evaluate, majority_baseline
from chiasm.eval.task import QuestionTask
from chiasm.eval.tasks.registry import NAMES, find_benchmark
from chiasm.eval.zero_shot import PROMPTS, retrieval, zero_shot_accuracy
from chiasm.hub.load import layout_of, load
from chiasm.infer.likelihood import LabelResponder
from chiasm.recipes.asked import Asked
from chiasm.recipes.talk import responder
from chiasm.train.checkpoint import read_json
from chiasm.vision.config import ContrastiveConfig
from chiasm.vision.dual import Dual, OwnDual, load_stock_dual


def evaluate_command(
    run: Path,
    asked: Asked,
    *,
    blind: bool = False,
    out: Path | None = None,
    by_likelihood: bool = False,
    labels: Path | None = None,
    prompts: Sequence[str] = PROMPTS,
    count: int = 4,
    judge: Path | None = None,
) -> None:
    """Evaluate, print the table, keep the predictions."""
    if asked.metric == "perplexity":
        samples = asked.samples()[: asked.limit or None]
        _report(modality_perplexity(responder(run), samples), asked.name, "perplexity")
        return
    if asked.task in NAMES and find_benchmark(asked.task).metric == "drawing":
        _draw(run, asked, out or run / f"drawn-{asked.name}", count, judge)
        return
    task = asked.question_task()
    dual = contrastive(run)
    if dual is not None:
        shown = task.blinded(asked.seed) if blind else task
        _zero_shot(dual, shown, asked.labels(task, labels), prompts, out)
        return
    respond = responder(run)
    choose = LabelResponder(respond, _labels(asked, task, labels)) if by_likelihood else respond
    name = f"predictions-{task.name}{'-blind' if blind else ''}.jsonl"
    file = out or run / name
    result = evaluate(
        task.blinded(asked.seed) if blind else task, choose, Sampling(max_tokens=32), file
    )
    _print(result, majority_baseline(task), blind, file)
    if result.errors:
        raise DataError(
            f"{len(result.errors)} questions could not be asked, see {file}; mend or remove them"
        )


def contrastive(run: Path) -> Dual | None:
    """A contrastive encoder of ours or of transformers (a folder, or a hub id OWNER/NAME where no
    folder OWNER is), None for anything else."""
    if (run / "model.json").exists():
        if read_json(run / "model.json").get("kind") != ContrastiveConfig.__name__:
            return None
        return OwnDual(*load(run))
    if layout_of(run) is not None:
        return None
    if (run / "config.json").exists() or (len(run.parts) == 2 and not run.parent.exists()):
        return load_stock_dual(str(run))
    return None


def _labels(
    asked: Asked, task: QuestionTask, file: Path | None
) -> Callable[[Sample], Sequence[str]]:
    """A question's own choices, else those of all questions."""
    common = asked.labels(task, file)

    def of(sample: Sample) -> Sequence[str]:
        # Letters where the options stand in the question, texts where they do not.
        return list(sample.meta.get("options") or sample.meta.get("choices") or common)

    return of


def _zero_shot(
    dual: Dual, task: QuestionTask, classes: list[str], prompts: Sequence[str], out: Path | None
) -> None:
    """Retrieval where samples have captions, else classes by their names."""
    samples = task.samples()
    if any(sample.meta.get("captions") for sample in samples):
        scores, what = retrieval(dual, samples), f"retrieval, {len(samples)} pictures"
    else:
        scores = zero_shot_accuracy(dual, samples, classes, prompts)
        what = f"zero-shot, {len(samples)} pictures, {len(classes)} classes"
    _report(scores, task.name, what)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        record = {"task": task.name, "n": len(samples), "prompts": list(prompts), **scores}
        out.write_text(json.dumps(record, indent=2, ensure_ascii=False))


def _draw(run: Path, asked: Asked, out: Path, count: int, judge: Path | None) -> None:
    """Draw a benchmark's prompts; score what can be scored here."""
    samples = asked.samples()[: asked.limit or None]
    sampling = Sampling(temperature=1.0, top_p=0.95, guidance=1.5, seed=asked.seed)
    pictures = draw_prompts(responder(run), samples, out, count, sampling)
    scores = score_by_rules(samples, pictures) if rules_apply(samples) else {}
    if judge is not None:
        dual = contrastive(judge)
        if dual is None:
            raise DataError(
                f"{judge}: no contrastive encoder; train one with 'chiasm train encoder'"
            )
        scores[f"CLIPScore ({judge.name})"] = mean_clip_score(dual, samples, pictures)
    if scores:
        _report(scores, asked.name, f"{len(samples)} prompts, {count} pictures each")
    Console().print(f"{out}: pictures as GenEval's evaluation/evaluate_images.py reads them")


def _report(scores: dict[str, float], name: str, what: str) -> None:
    table = Table(title=f"{name}: {what}")
    table.add_column("")
    table.add_column("score", justify="right")
    for key, value in scores.items():
        table.add_row(key, f"{value:.4g}")
    Console().print(table)


def _print(result: Result, majority: dict, blind: bool, file: Path) -> None:
    table = Table(title=f"{result.task}{' (blind)' if blind else ''}, n = {result.n}")
    for heading in ("", result.measure, "95 %", "always the commonest"):
        table.add_column(heading, justify="left" if not heading else "right")
    low, high = result.accuracy_interval
    for name in ("accuracy", "open_accuracy", "yes_no_accuracy"):
        value, base = getattr(result, name), majority[name]
        if value is not None:
            interval = f"{low:.1%} - {high:.1%}" if name == "accuracy" else ""
            label = {"accuracy": "all"}.get(name, name.removesuffix("_accuracy").replace("_", "/"))
            table.add_row(label, f"{value:.1%}", interval, f"{base:.1%}")
    for name, value in result.metrics.items():
        table.add_row(name, f"{value:.4g}", "", "")
    console = Console()
    console.print(table)
    console.print(
        f"{result.parse_failures} replies were none of the answers; {result.n} in "
        f"{result.seconds:.0f} s; predictions: {file}"
    )
