"""chiasm eval: a trained model, a test set, a table."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from chiasm.core.errors import DataError
from chiasm.core.protocols import Sampling
from chiasm.data import easy_vqa
from chiasm.data.load import BUILT_IN, load_samples
from chiasm.data.quarantine import Quarantine
from chiasm.eval.runner import Result, evaluate, majority_baseline
from chiasm.eval.task import QuestionTask
from chiasm.recipes.run import read
from chiasm.recipes.talk import responder


def question_task(data: str, limit: int, seed: int) -> QuestionTask:
    """The test questions of a data set as a task; easy-VQA's answers are a closed set."""
    answers = easy_vqa.ANSWERS if data in BUILT_IN else None
    samples = load_samples(data, "test") if data in BUILT_IN else read(data, "test", Quarantine())
    return QuestionTask(Path(data).stem, samples, answers, limit=limit or None, seed=seed)


def evaluate_command(
    run: Path, data: str, limit: int, seed: int, blind: bool, out: Path | None
) -> None:
    """Evaluate, print the table, keep the predictions."""
    task = question_task(data, limit, seed)
    asked = task.blinded(seed) if blind else task
    name = f"predictions-{task.name}{'-blind' if blind else ''}.jsonl"
    file = out or run / name
    result = evaluate(asked, responder(run), Sampling(max_tokens=32), file)
    _print(result, majority_baseline(task), blind, file)
    if result.errors:
        raise DataError(
            f"{len(result.errors)} questions could not be asked, see {file}; mend or remove them"
        )


def _print(result: Result, majority: dict, blind: bool, file: Path) -> None:
    table = Table(title=f"{result.task}{' (blind)' if blind else ''}, n = {result.n}")
    for heading in ("", "accuracy", "95 %", "always the commonest"):
        table.add_column(heading, justify="left" if not heading else "right")
    low, high = result.accuracy_interval
    for name in ("accuracy", "open_accuracy", "yes_no_accuracy"):
        value, base = getattr(result, name), majority[name]
        if value is not None:
            interval = f"{low:.1%} - {high:.1%}" if name == "accuracy" else ""
            label = {"accuracy": "all"}.get(name, name.removesuffix("_accuracy").replace("_", "/"))
            table.add_row(label, f"{value:.1%}", interval, f"{base:.1%}")
    console = Console()
    console.print(table)
    console.print(
        f"{result.parse_failures} replies were none of the answers; {result.n} in "
        f"{result.seconds:.0f} s; predictions: {file}"
    )
