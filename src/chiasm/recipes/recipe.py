"""What a recipe says; importable without torch so that a typo is told at once."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from chiasm.core.config import current_path, from_dict, nearest, override, tag, to_dict
from chiasm.core.errors import ConfigError
from chiasm.core.registry import allow_named, import_file
from chiasm.mllm.config import MLLMConfig
from chiasm.train.stage import Ranks, Stage, Unit
from chiasm.unified.config import AutoencoderConfig, UnifiedConfig
from chiasm.vision.config import ContrastiveConfig

Model = ContrastiveConfig | AutoencoderConfig | MLLMConfig | UnifiedConfig


@tag("augment")
@dataclass(frozen=True)
class Augment:
    """shift: pixels of random translation, each way. hflip: flip half of the images of which that
    leaves true what is said (data/augment.py)."""

    shift: int = 0
    hflip: bool = False


@tag("recipe")
@dataclass(frozen=True)
class Recipe:
    """One training run: a model, its stages, its data.

    data: "easy-vqa", a folder with train.jsonl (and test.jsonl), or a .jsonl file, or several
    (data/mixture.py). augment: of the images while training the two routes (encoders and image
    tokenizers have fields of their own). questions_per_image: at most this many questions of an
    independent sample are used at a time (0: all). keep_checkpoints: so many of the newest. ranks:
    how the processes of torchrun share the model. loggers: where metrics go besides metrics.jsonl:
    tensorboard, wandb, trackio, mlflow. images: the folder that image paths of the data are
    relative to ("" for each file's own; "/" also allows absolute paths). strict: leave out records
    with keys that no reader uses. init: the run, folder or hub id whose model training begins with
    (recipes/initial.py): its weights and its configuration, of which this model's fields replace
    those named in init_overrides.
    """

    model: Model
    stages: tuple[Stage, ...]
    data: str = "easy-vqa"
    seed: int = 0
    augment: Augment = Augment()  # frozen
    questions_per_image: int = 0
    keep_checkpoints: int = 2
    ranks: Ranks = Ranks()  # noqa: RUF009  # frozen
    loggers: tuple[str, ...] = ()
    images: str = ""
    strict: bool = False
    init: str = ""
    init_overrides: tuple[str, ...] = ()


NAMES = (
    "encoder",
    "tokenizer",
    "mllm_smol",
    "unified_nano",
    "unified_interleaved",
    "dpo_smol",
    "grpo_smol",
    "grpo_draw",
    "tokenizer_base",
    "unified_base",
    "chameleon_7b",
    "emu3_8b",
    "llava15_7b",
    "paligemma_3b",
    "nanovlm_222m",
    "smolvlm_256m",
)
"""The recipes that come with chiasm."""


def find(name: str) -> Recipe:
    """A recipe by name, from a Python file that defines `recipe() -> Recipe`, or from the
    recipe.json of a run."""
    path = Path(name).expanduser()
    if path.suffix == ".json":
        return _read_saved(path)
    if path.suffix == ".py":
        if not path.exists():
            raise ConfigError(f"{path}: no such file; give a recipe's file or one of {_list()}")
        module = import_file(path.absolute())
        if not hasattr(module, "recipe"):
            raise ConfigError(
                f"{path}: defines no function recipe(); add one that returns a Recipe"
            )
        found = module.recipe()
        allow_named([json.dumps(to_dict(found))])  # a recipe's file is the user's own
        return found
    if name not in NAMES:
        raise ConfigError(f"unknown recipe '{name}'{nearest(name, NAMES)}; there are {_list()}")
    return importlib.import_module(f"chiasm.recipes.{name}").recipe()


def batch_unit(model: Model, stage: Stage) -> Unit:
    """What a stage of training this model counts its batches in."""
    images = isinstance(model, ContrastiveConfig | AutoencoderConfig)
    return "images" if images or stage.objectives == "embed_align" else "tokens"


def with_overrides(recipe: Recipe, settings: dict[str, str]) -> Recipe:
    """The recipe with dotted fields replaced; ConfigError names the nearest field. Fields of the
    model that are set beside `init` are set over those of the model it names."""
    found = override(recipe, settings)
    keys = [current_path(recipe, key) for key in settings]
    fields = [key.split(".")[1] for key in keys if key.startswith("model.")]
    if not found.init or not fields:
        return found
    return replace(found, init_overrides=tuple(dict.fromkeys([*found.init_overrides, *fields])))


def from_saved(saved: dict, where: str = "recipe.json") -> Recipe:
    """The recipe of a run's recipe.json. where: how errors name it."""
    return from_dict(Recipe, saved, where)


def _read_saved(path: Path) -> Recipe:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a run's recipe.json, a Python file "
            f"with recipe() or one of {_list()}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); give a run's recipe.json") from None
    return from_saved(saved, str(path))


def run_folder(name: str) -> Path:
    """Where a recipe's run goes if nothing else is said: runs/RECIPE. Raises ConfigError for a
    run's recipe.json, as that folder holds a run."""
    path = Path(name)
    if path.suffix == ".json":
        raise ConfigError(
            f"{name}: the recipe of a run; say where the new run goes, with --out (out= in Python)"
        )
    return Path("runs") / path.stem


def _list() -> str:
    return ", ".join(NAMES)
