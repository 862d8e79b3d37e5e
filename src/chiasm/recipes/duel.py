"""chiasm isoflop: both routes within the same FLOPs, over seeds and budgets, resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from chiasm.core.config import nearest
from chiasm.core.errors import CheckpointError, ConfigError, DataError
from chiasm.core.progress import Bar, Show
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Sample
from chiasm.data.dataset import read
from chiasm.data.quarantine import Quarantine
from chiasm.eval.conversation import group_key
from chiasm.eval.duel import Outcome, RunResult, conclusions, judge
from chiasm.eval.identity import prompt_hashes, versions, weights_hash
from chiasm.eval.predictions import read_predictions
from chiasm.eval.report.duelled import render_duel
from chiasm.eval.runner import evaluate
from chiasm.eval.task import MeasuredTask, QuestionTask
from chiasm.generation.generator import Generator
from chiasm.hub.load import load
from chiasm.recipes.cost import bill_of
from chiasm.recipes.eval_task import Asked
from chiasm.recipes.isoflop_models import (
    Arm,
    Rates,
    encoding_flops,
    fit_steps,
    known_arms,
    measure,
    train_main,
    train_part,
)
from chiasm.train.checkpoint import read_json, write_whole


@dataclass(frozen=True)
class DuelSettings:
    """budget: the largest, in FLOPs; points: so many budgets, each half of the one above. seeds: of
    each arm at each budget. questions: asked of each model at most. keep: weights of all runs stay
    on the disk (a pretrained language model is half a gigabyte a run)."""

    data: str
    budget: float
    points: int = 3
    seeds: int = 3
    questions: int = 1000
    max_tokens: int = 16
    metric: str = ""
    keep: bool = False

    @property
    def budgets(self) -> tuple[float, ...]:
        return tuple(self.budget / 2**i for i in reversed(range(self.points)))


@dataclass(frozen=True)
class Plan:
    """Steps of an arm's part and model at a budget, and how long they should take."""

    part: tuple[int, ...]
    main: tuple[int, ...]
    seconds: float


def duel(
    settings: DuelSettings,
    out: Path,
    arms: Mapping[str, Arm] | None = None,
    only_plan: bool = False,
    show: Show = Bar,
) -> Outcome | None:
    """Train and evaluate every arm at every budget with every seed that `out` does not hold yet;
    write results.json and report.html there. only_plan: say what would be trained and how long it
    would take, None comes back. Raises ConfigError for settings that cannot be compared."""
    arms = known_arms() if arms is None else arms
    _check(settings, arms, out)
    console = Console()
    train = read(settings.data, "train", Quarantine())
    asked = Asked(settings.data, metric=settings.metric, limit=settings.questions)
    task = asked.question_task()
    images = sum(1 for sample in train if sample.images)
    rates = {
        name: measure(arm, settings.data, train, out / "probe" / name, show)
        for name, arm in arms.items()
    }
    plans, missing = _plans(settings, arms, rates, out, images)
    _say_plans(console, settings, plans, missing)
    if only_plan:
        return None
    trials: list[RunResult] = []
    for (name, budget), plan in plans.items():
        for seed in range(settings.seeds):
            folder = out / name / f"{budget:.3g}" / f"seed-{seed}"
            trial = _known(folder) or _trial(
                _Bench(settings, arms[name], rates[name], train, task, images),
                plan,
                budget,
                seed,
                folder,
                show,
            )
            trials.append(trial)
            console.print(
                f"{name} at {budget:.3g}, seed {seed}: {trial.mean:.1%}, {trial.flops:.4g} FLOPs "
                f"({trial.off:+.1%}), {trial.seconds:.0f} s",
                highlight=False,
            )
    keys = {key: i for i, key in enumerate(dict.fromkeys(map(group_key, task.samples())))}
    groups = [keys[group_key(sample)] for sample in task.samples()]
    outcome = judge(trials, groups, missing)
    _write(outcome, settings, arms, task, groups, out)
    for line in conclusions(outcome):
        console.print(line, markup=False, highlight=False)
    console.print(f"The report: {out / 'report.html'}", highlight=False)
    return outcome


def choose_arms(names: Sequence[str]) -> dict[str, Arm]:
    """Arms by name. Raises ConfigError naming the nearest."""
    known = known_arms()
    for name in names:
        if name not in known:
            raise ConfigError(
                f"unknown arm '{name}'{nearest(name, known)}; there are {', '.join(known)}"
            )
    return {name: known[name] for name in names}


def _check(settings: DuelSettings, arms: Mapping[str, Arm], out: Path) -> None:
    if settings.seeds < 2 or settings.points < 1 or len(arms) < 2:
        raise ConfigError(
            f"{len(arms)} arms, {settings.seeds} seeds, {settings.points} budgets: a duel needs "
            "two arms, two seeds (three or more for an interval worth having) and one budget"
        )
    file, now = out / "settings.json", json.loads(json.dumps(asdict(settings)))
    before = read_json(file) if file.exists() else now
    if {**before, "seeds": 0, "points": 0} != {**now, "seeds": 0, "points": 0}:
        changed = [name for name in now if before.get(name) != now[name]]
        raise CheckpointError(
            f"{out}: holds a duel with other settings ({', '.join(changed)}); choose another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(now, indent=2))


@dataclass(frozen=True)
class _Bench:
    """What all trials of an arm share."""

    settings: DuelSettings
    arm: Arm
    rates: Rates
    train: Sequence[Sample]
    task: QuestionTask
    images: int


def _plans(
    settings: DuelSettings,
    arms: Mapping[str, Arm],
    rates: Mapping[str, Rates],
    out: Path,
    images: int,
) -> tuple[dict[tuple[str, float], Plan], dict[tuple[str, float], str]]:
    """By (arm, budget): what is to be done, or why it cannot be."""
    plans, missing = {}, {}
    for budget in settings.budgets:
        for name, arm in arms.items():
            try:
                plans[name, budget] = _plan(arm, rates[name], budget, out / "probe" / name, images)
            except ConfigError as error:
                missing[name, budget] = str(error)
    return plans, missing


def _plan(arm: Arm, rates: Rates, budget: float, probe: Path, images: int) -> Plan:
    """One factor for the stages of part and model."""
    own = [stage.steps for stage in (*arm.part.stages, *arm.main.stages)]
    costs = [rate.flops for side in rates for rate in side]
    cut = len(rates[0])
    whole = fit_steps(own, costs, budget)
    for _ in range(4):  # reading images costs what the steps say that it costs
        reading = _reading(arm, rates, whole[cut:], probe, images)
        whole = fit_steps(own, costs, budget - reading)
    seconds = sum(n * r.seconds for n, r in zip(whole, (*rates[0], *rates[1]), strict=True))
    return Plan(whole[:cut], whole[cut:], seconds)


def _reading(arm: Arm, rates: Rates, steps: Sequence[int], part_folder: Path, images: int) -> float:
    seen = max(n * rate.images for n, rate in zip(steps, rates[1], strict=True))
    return encoding_flops(arm, part_folder, seen, images)


def _trial(
    bench: _Bench, plan: Plan, budget: float, seed: int, folder: Path, show: Show
) -> RunResult:
    """Part, model, questions; weights are deleted afterwards unless they are to be kept."""
    arm, settings = bench.arm, bench.settings
    part = train_part(arm, settings.data, folder, seed, plan.part, show)
    # What the part did cost decides what is left for the model.
    left = budget - part.flops
    own = [stage.steps for stage in arm.main.stages]
    costs = [rate.flops for rate in bench.rates[1]]
    reading = _reading(arm, bench.rates, plan.main, folder, bench.images)
    steps = fit_steps(own, costs, left - reading)
    main = train_main(arm, settings.data, bench.train, folder, seed, steps, show)
    seen = max(entry.images for entry in main.stages)
    flops = part.flops + main.flops + encoding_flops(arm, folder, seen, bench.images)
    bill = bill_of(folder / "model")
    trial = RunResult(
        arm.name,
        budget,
        seed,
        flops,
        part.seconds + main.seconds,
        bill.peak_memory or 0.0,
        _scores(bench, folder, show),
        {entry.name: entry.steps for entry in (*part.stages, *main.stages)},
    )
    write_whole(folder / "trial.json", json.dumps(asdict(trial)))
    if not settings.keep:
        for name in (arm.part_name, "model", "language"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return trial


def _scores(bench: _Bench, folder: Path, show: Show) -> tuple[float, ...]:
    """Of every question. Raises DataError where one could not be asked."""
    model, processor = load(folder / "model")
    sampling = SamplingParams(max_tokens=bench.settings.max_tokens)
    file = folder / "predictions.jsonl"
    run = {
        "weights": weights_hash(folder / "model"),
        "sampling": asdict(sampling),
        **prompt_hashes(processor, bench.task.samples()),
    }
    result = evaluate(bench.task, Generator(model, processor), sampling, file, show, run=run)
    if result.errors:
        first = next(iter(result.errors.values()))
        raise DataError(f"{len(result.errors)} test questions could not be asked; {first}")
    return tuple(record["correct"] for record in read_predictions(file))


def _known(folder: Path) -> RunResult | None:
    """A trial that is finished."""
    file = folder / "trial.json"
    if not file.exists():
        return None
    record = read_json(file)
    return RunResult(**{**record, "scores": tuple(record["scores"])})


def _say_plans(
    console: Console,
    settings: DuelSettings,
    plans: Mapping[tuple[str, float], Plan],
    missing: Mapping[tuple[str, float], str],
) -> None:
    for (name, budget), plan in plans.items():
        steps = " ".join(map(str, (*plan.part, *plan.main)))
        console.print(
            f"{name} at {budget:.3g} FLOPs: steps {steps}; about {plan.seconds:.0f} s a seed",
            highlight=False,
        )
    for (name, budget), why in missing.items():
        console.print(f"{name} at {budget:.3g} FLOPs: left out, {why}", highlight=False)
    seconds = settings.seeds * sum(plan.seconds for plan in plans.values())
    console.print(
        f"{len(plans) * settings.seeds} runs, about {seconds / 60:.0f} minutes of training",
        highlight=False,
    )


def _write(
    outcome: Outcome,
    settings: DuelSettings,
    arms: Mapping[str, Arm],
    task: QuestionTask,
    groups: Sequence[int],
    out: Path,
) -> None:
    measure_ = task.measure if isinstance(task, MeasuredTask) else "accuracy"
    record = {
        "data": settings.data,
        "measure": measure_,
        "questions": len(groups),
        "settings": asdict(settings),
        "versions": versions(),
        "conclusions": conclusions(outcome),
        "stands": [
            {k: v for k, v in asdict(stand).items() if k != "trials"} for stand in outcome.stands
        ],
        "bouts": [{**asdict(bout), "winner": bout.winner} for bout in outcome.bouts],
        "missing": [[*key, why] for key, why in outcome.missing.items()],
        "images": list(groups),
        "trials": [
            {**asdict(t), "scores": [round(s, 4) for s in t.scores]}
            for s in outcome.stands
            for t in s.trials
        ],
    }
    write_whole(out / "results.json", json.dumps(record) + "\n")
    titles = {name: arm.title for name, arm in arms.items()}
    render_duel(outcome, titles, measure_, record, out / "report.html")
