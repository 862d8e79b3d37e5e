"""What `chiasm eval --task` means: a benchmark, a data set, or any table with a metric."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError, DataError
from chiasm.core.registry import REFERENCE
from chiasm.core.sample import Sample
from chiasm.data import easy_vqa
from chiasm.data.dataset import read
from chiasm.data.formats.reading import Reading
from chiasm.data.load import BUILT_IN, load_samples, prefixed
from chiasm.data.mixture import parse
from chiasm.data.quarantine import Quarantine
from chiasm.data.splits import split_of
from chiasm.eval.conversation import Turns
from chiasm.eval.harness import harness_metric
from chiasm.eval.metrics.compat import Compat
from chiasm.eval.metrics.vqa import fold
from chiasm.eval.scoring import find_metric
from chiasm.eval.task import MeasuredTask, QuestionTask
from chiasm.eval.tasks.registry import NAMES, download, find_benchmark, read_benchmark
from chiasm.eval.tasks.table import columns_of, prompted, read_table


@dataclass(frozen=True)
class Asked:
    """task: a benchmark's name, "easy-vqa", a file or folder in any format that training reads.
    folder: where a benchmark's files are (data/NAME). split: "" for the one that has answers.
    fetch: download it first. metric: "" for the task's own. columns: which column is what
    (eval/tasks/table.py). turns: which of a conversation's questions are asked
    (eval/conversation.py). prompt: a line after each question. images: the folder that image paths
    are relative to. whole: ask all of a file whose name says no split, not its held-out tenth."""

    task: str
    folder: Path | None = None
    split: str = ""
    fetch: bool = False
    metric: str = ""
    columns: str = ""
    match_harness: Compat = None
    limit: int = 0
    seed: int = 0
    turns: Turns = "all"
    prompt: str = ""
    images: Path | None = None
    whole: bool = False

    @property
    def name(self) -> str:
        return self.task.rpartition(":")[2] if self.benchmark else Path(self.task).stem

    @property
    def benchmark(self) -> bool:
        """Whether the task is a benchmark, also one of the user's own (module:NAME): neither a path
        nor FORMAT:PATH."""
        if self.task in NAMES:
            return True
        own = REFERENCE.fullmatch(self.task) is not None and not Path(self.task).exists()
        return own and prefixed(self.task)[0] is None

    def samples(self) -> Sequence[Sample]:
        """All questions with their answers."""
        samples = self._samples()
        return [prompted(s, self.prompt) for s in samples] if self.prompt else samples

    def _samples(self) -> Sequence[Sample]:
        if self.benchmark:
            folder = self.folder or Path("data") / self.name
            if self.fetch:
                download(self.task, folder)
            return read_benchmark(self.task, folder, self.split)
        if self.task in BUILT_IN:
            return load_samples(self.task, "test")
        if not Path(self.task).exists() and (near := nearest(self.task, NAMES)):
            raise ConfigError(f"unknown task '{self.task}'{near}")
        quarantine = Quarantine()
        reading = Reading(
            quarantine.record,
            self.images,
            columns_of(self.columns),
            unused=quarantine.unused,
        )
        path = Path(self.task).expanduser()
        if path.is_file() and self.whole and split_of(path.stem) is None:
            samples: Sequence[Sample] = read_table(path, self.columns, reading)
        else:
            samples = read(self.task, "test", quarantine, reading)
        if len(quarantine):
            first = next(iter(quarantine.reasons.values()))
            Console(stderr=True, soft_wrap=True).print(
                f"{len(quarantine)} records could not be read and are not asked: {first}",
                markup=False,
                highlight=False,
            )
        return samples

    def question_task(self) -> QuestionTask:
        """The questions as a task; easy-VQA's answers are a closed set."""
        samples, limit = self.samples(), self.limit or None
        metric = self.metric or self._usual(samples) or ("exact" if self.match_harness else "")
        if not metric:
            answers = easy_vqa.ANSWERS if self.task in BUILT_IN else None
            return QuestionTask(
                self.name, samples, answers, limit=limit, seed=self.seed, turns=self.turns
            )
        found = find_metric(metric)
        if self.match_harness:
            own = self.benchmark and metric == self.usual_metric()
            found = harness_metric(metric, self.task if own else "")
        return MeasuredTask(
            self.name, samples, found, limit=limit, seed=self.seed, turns=self.turns
        )

    def usual_metric(self) -> str:
        """A benchmark's own metric, "" for anything else."""
        return find_benchmark(self.task).metric if self.benchmark else ""

    def _usual(self, samples: Sequence[Sample]) -> str:
        """The metric of a task for which none was asked, "" where answers are just compared."""
        if self.benchmark:
            return self.usual_metric()
        if self.task in BUILT_IN:
            return ""
        if any("options" in sample.meta for sample in samples):
            return "choice"
        several = any("answers" in s.meta or "captions" in s.meta for s in samples)
        return "exact" if several else ""

    def labels(self, task: QuestionTask, file: Path | None = None) -> list[str]:
        """The names to choose from: the lines of a file, else of classes.txt beside the data, else
        all answers of the task, which tells a model more than the question does."""
        beside = Path(self.task).expanduser()
        beside = (beside if beside.is_dir() else beside.parent) / "classes.txt"
        file = file or (beside if beside.is_file() else None)
        if file is None:
            closed = task.answers or ()
            # Spellings of one answer ("Yes", "yes.") are one label, the commonest of them.
            # Questions with options of their own choose among those.
            free = [s for s in task.samples() if not own_labels(s)] or task.samples()
            spelled = Counter(s.meta["reference"] for s in free).most_common()
            return list(closed) or sorted({fold(t): t for t, _ in reversed(spelled)}.values())
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: {error}; give a text file, one label a line") from None
        labels = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if not labels:
            raise DataError(f"{file}: no labels; write one a line")
        return labels


def own_labels(sample: Sample) -> list[str]:
    """What a question has to choose from: the letters of options that stand in it, or the texts of
    choices that do not; none for an open one."""
    return list(sample.meta.get("options") or sample.meta.get("choices") or ())


def for_runs(asked: Asked, runs: Sequence[Path]) -> Asked:
    """All of a file is asked, unless one of the runs was trained on it."""
    path = Path(asked.task).expanduser()
    if not path.is_file():
        return asked
    return replace(asked, whole=not any(_trained_on(run, path.resolve()) for run in runs))


def _trained_on(run: Path, file: Path) -> bool:
    try:
        data = json.loads((run / "recipe.json").read_bytes()).get("data", "")
    except (OSError, ValueError, AttributeError):
        return False
    mixture = parse(data)
    sources = [data] if mixture is None else [source.data for source in mixture.sources]
    return any(file.is_relative_to(prefixed(source)[1].resolve()) for source in sources)
