"""Other places that hear of the metrics, each an optional extra; metrics.jsonl stays the truth."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError, MissingExtraError


class Sink(Protocol):
    """Told every line of metrics.jsonl."""

    def write(self, record: dict) -> None: ...
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

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases; where it sends to is said by its own environment variables."""

    def __init__(self, folder: Path, config: dict, resumed_step: int):
        wandb = _need("wandb", "wandb")
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
