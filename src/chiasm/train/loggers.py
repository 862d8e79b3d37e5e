"""Other places that hear of the metrics, each an optional extra; metrics.jsonl stays the truth."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError, MissingExtraError
from chiasm.train.evaluation import Answer, Examples

ANSWERS, DRAWINGS = "examples/answers", "examples/drawings"
COLUMNS = ["image", "question", "reference", "reply", "correct"]


class Sink(Protocol):
    """Gets every line of metrics.jsonl, and the examples of evaluations."""

    def write(self, record: dict) -> None: ...
    def show(self, step: int, examples: Examples) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in FOLDER/tensorboard; a resumed run hides what it does again."""

    def __init__(self, folder: Path, config: dict, resumed_step: int):
        _need("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        purge = resumed_step + 1 if resumed_step else None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def write(self, record: dict) -> None:
        for name, value in numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def show(self, step: int, examples: Examples) -> None:
        if examples.answers:
            self._writer.add_text(ANSWERS, markdown(examples), step)
        for number, (_, image) in enumerate(examples.answers):
            if image is not None:
                self._writer.add_image(
                    f"{ANSWERS}/{number}", _pixels(image), step, dataformats="HWC"
                )
        for number, drawing in enumerate(examples.drawings):
            self._writer.add_image(
                f"{DRAWINGS}/{number}", _pixels(drawing.image), step, dataformats="HWC"
            )
        if examples.drawings:
            prompts = (f"{n}. {drawing.prompt}" for n, drawing in enumerate(examples.drawings))
            self._writer.add_text(f"{DRAWINGS}/prompts", "\n".join(prompts), step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases; where it sends to is said by its own environment variables."""

    def __init__(self, folder: Path, config: dict, resumed_step: int):
        wandb = _need("wandb", "wandb")
        self._wandb = wandb
        self._run: Any = wandb.init(
            project="chiasm",
            name=folder.name,
            id=_remembered(folder / "wandb.id", resumed_step, lambda: uuid.uuid4().hex),
            resume="allow",
            dir=str(folder),
            config=config,
        )

    def write(self, record: dict) -> None:
        self._run.log(numbers(record), step=record["step"])

    def show(self, step: int, examples: Examples) -> None:
        self._run.log(media(self._wandb, examples), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio: a local database, with its own dashboard."""

    def __init__(self, folder: Path, config: dict, resumed_step: int):
        self._trackio: Any = _need("trackio", "trackio")
        resume = "allow" if resumed_step else "never"
        self._trackio.init(project="chiasm", name=folder.name, config=config, resume=resume)

    def write(self, record: dict) -> None:
        self._trackio.log(numbers(record), step=record["step"])

    def show(self, step: int, examples: Examples) -> None:
        self._trackio.log(media(self._trackio, examples), step=step)

    def close(self) -> None:
        self._trackio.finish()


class MLflow:
    """MLflow; its server by MLFLOW_TRACKING_URI, else files beside the process."""

    def __init__(self, folder: Path, config: dict, resumed_step: int):
        self._client: Any = _need("mlflow", "mlflow").MlflowClient()
        self._id = _remembered(folder / "mlflow.id", resumed_step, lambda: self._begin(folder.name))
        self._client.log_dict(self._id, config, "recipe.json")

    def write(self, record: dict) -> None:
        for name, value in numbers(record).items():
            self._client.log_metric(self._id, name, value, step=record["step"])

    def show(self, step: int, examples: Examples) -> None:
        place = f"samples/step-{step}"
        if examples.answers:
            self._client.log_text(self._id, markdown(examples), f"{place}/answers.md")
        for number, (_, image) in enumerate(examples.answers):
            if image is not None:
                self._client.log_image(self._id, image, f"{place}/question-{number}.png")
        for number, drawing in enumerate(examples.drawings):
            self._client.log_image(self._id, drawing.image, f"{place}/drawing-{number}.png")
        if examples.drawings:
            prompts = [drawing.prompt for drawing in examples.drawings]
            self._client.log_dict(self._id, {"prompts": prompts}, f"{place}/drawings.json")

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _begin(self, name: str) -> str:
        known = self._client.get_experiment_by_name("chiasm")
        experiment = known.experiment_id if known else self._client.create_experiment("chiasm")
        return self._client.create_run(experiment, run_name=name).info.run_id


KINDS = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio, "mlflow": MLflow}


def open_sinks(
    names: Sequence[str], folder: Path, config: dict, resumed_step: int = 0
) -> list[Sink]:
    """The sinks of these names. ConfigError for an unknown one, MissingExtraError where its package
    is not installed."""
    for name in names:
        if name not in KINDS:
            known = ", ".join(KINDS)
            raise ConfigError(f"sinks: no '{name}'{nearest(name, KINDS)}; there are {known}")
    return [KINDS[name](folder, config, resumed_step) for name in names]


def numbers(record: dict) -> dict[str, float]:
    """What of a line can be plotted."""
    plotted = {k: v for k, v in record.items() if isinstance(v, (int, float)) and k != "step"}
    return {name: float(value) for name, value in plotted.items()}


def media(library: Any, examples: Examples) -> dict[str, Any]:
    """Examples in the types that W&B and trackio both have: Table and Image."""
    logged: dict[str, Any] = {}
    if examples.answers:
        rows = [
            [None if image is None else library.Image(image), *_cells(answer)]
            for answer, image in examples.answers
        ]
        logged[ANSWERS] = library.Table(columns=COLUMNS, data=rows)
    if examples.drawings:
        rows = [[library.Image(each.image), each.prompt] for each in examples.drawings]
        logged[DRAWINGS] = library.Table(columns=["image", "prompt"], data=rows)
    return logged


def markdown(examples: Examples) -> str:
    """The answers as a table."""
    lines = [COLUMNS[1:], ["---"] * len(COLUMNS[1:])]
    lines += [_cells(answer) for answer, _ in examples.answers]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cells(answer: Answer) -> list[str]:
    """An answer's columns but for the image."""
    correct = "" if answer.correct is None else f"{answer.correct:g}"
    return [answer.question, answer.reference, answer.reply or answer.error, correct]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _pixels(image: PIL.Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def _remembered(file: Path, resumed_step: int, make: Callable[[], str]) -> str:
    """The id under which a resumed run is known already, else a new one."""
    if not resumed_step or not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(make())
    return file.read_text()


def _need(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise MissingExtraError(package, extra, f"The sink '{extra}'") from None
