"""chiasm compare: models on the same questions, as a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chiasm.core.errors import DataError
from chiasm.eval.compare import Bill, Comparison, ModelResult, compare
from chiasm.eval.export import check_export, export
from chiasm.eval.predictions import read_predictions
from chiasm.eval.report.charts import percent
from chiasm.eval.report.compared import p_value, points, render_comparison, verdict
from chiasm.eval.task import MeasuredTask
from chiasm.recipes.cost import bill_of
from chiasm.recipes.eval_task import Asked, for_runs
from chiasm.recipes.evaluate import DEFAULT, How, ask_model


def compare_command(
    runs: Sequence[Path], asked: Asked, how: How = DEFAULT, *, out: Path, export_to: Path | None
) -> Comparison:
    """Ask every run what it was not asked yet, compare, print, write the page. A run may be a file
    of predictions instead of a folder. Raises DataError at the end if a question failed."""
    if export_to is not None:
        check_export(export_to)
    folders = [run for run in runs if run.is_dir()]
    asked = for_runs(asked, folders)
    task = asked.question_task() if folders else None
    measure, name, failed = "accuracy", asked.name, 0
    if isinstance(task, MeasuredTask):
        measure = task.measure
    contenders = []
    for run, title in zip(runs, names(runs), strict=True):
        if task is not None and run.is_dir():
            file = run / f"predictions-{task.name}.jsonl"
            failed += len(ask_model(run, asked, task, how, file)[""].errors)
            bill = bill_of(run)
        else:
            file, bill = run, Bill()
            if not run.is_file():
                raise DataError(f"{run}: neither a run's folder nor a file of predictions")
        contenders.append(ModelResult(title, _by_question(file), bill))
    found = compare(contenders)
    page = render_comparison(found, name, measure, out)
    _print(found, name, measure)
    Console().print(f"The report: [bold]{escape(str(page))}[/bold]")
    if export_to is not None:
        export(export_to, _rows(found, measure), _record(found))
    if failed:
        raise DataError(
            f"{failed} of the questions could not be asked; they are left out for all models"
        )
    return found


def names(runs: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many before it as it takes to tell them apart."""
    paths = [run.resolve().with_suffix("") if run.is_file() else run.resolve() for run in runs]
    for depth in range(1, max(len(p.parts) for p in paths) + 1):
        found = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(found)) == len(found):
            return found
    raise DataError("the same model is named twice; name each once")


def _by_question(file: Path) -> dict[str, dict]:
    """Predictions by id, or by words and image where there is none. Raises DataError for two of
    one id."""
    records = read_predictions(file)
    found = {str(r.get("id") or f"{r.get('image')} {r.get('question')}"): r for r in records}
    if len(found) < len(records):
        raise DataError(
            f"{file}: {len(records)} predictions but {len(found)} ids; give every question its own"
        )
    return found


def _print(found: Comparison, name: str, measure: str) -> None:
    console = Console()
    table = Table(title=f"{name}, n = {len(found.questions)}")
    for heading in ("", measure, "95 %", "training FLOPs", "time", "peak memory"):
        table.add_column(heading, justify="left" if not heading else "right")
    for score, one in zip(found.scores, found.contenders, strict=True):
        low, high = score.interval
        bill = one.bill
        table.add_row(
            escape(score.name),
            f"{score.mean:.1%}",
            f"{low:.1%} - {high:.1%}",
            f"{bill.flops:.3g}" if bill.flops else "?",
            f"{bill.seconds:.0f} s" if bill.seconds else "?",
            f"{bill.peak_memory / 1e9:.1f} GB" if bill.peak_memory else "?",
        )
    console.print(table)
    pairs = Table(title="Second less first, the same questions")
    for heading in ("", "difference", "95 %", "only first", "only second", "test", "p (Holm)"):
        pairs.add_column(heading, justify="left" if not heading else "right")
    for pair in found.pairs:
        low, high = pair.interval
        pairs.add_row(
            escape(f"{pair.second} - {pair.first}"),
            points(pair.difference, True),
            f"{100 * low:+.1f} to {100 * high:+.1f}",
            f"{pair.only_first}",
            f"{pair.only_second}",
            pair.test,
            p_value(pair.adjusted),
        )
    console.print(pairs)
    for kind in (*found.turns[:12], *found.categories[:12]):
        said = ", ".join(f"{s.name} {percent(s.mean)}" for s in kind.scores)
        sure = "".join(f"; {p.winner} is better" for p in kind.pairs if p.winner)
        console.print(f"  {kind.name} (n {kind.scores[0].n}): {said}{sure}", markup=False)
    console.print(verdict(found, name), markup=False, highlight=False)


def _rows(found: Comparison, measure: str) -> list[dict[str, object]]:
    rows = []
    for score, one in zip(found.scores, found.contenders, strict=True):
        low, high = score.interval
        row = {"model": score.name, "n": score.n, measure: round(score.mean, 4)}
        row |= {"95 % from": round(low, 4), "to": round(high, 4)}
        rows.append(row | {k: v for k, v in asdict(one.bill).items() if v is not None})
    return rows


def _record(found: Comparison) -> dict:
    return {
        "n": len(found.questions),
        "left_out": found.left_out,
        "models": [
            {**asdict(score), "cost": asdict(one.bill)}
            for score, one in zip(found.scores, found.contenders, strict=True)
        ],
        "pairs": [{**asdict(pair), "winner": pair.winner} for pair in found.pairs],
        "categories": [asdict(kind) for kind in found.categories],
        "turns": [asdict(turn) for turn in found.turns],
        "disagreements": found.disagreements,
    }
