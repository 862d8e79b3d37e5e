"""The loss of a stage, and what it keeps of the weights that the stage began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chiasm.core.errors import ConfigError
from chiasm.core.protocols import Loss
from chiasm.data.replies import ReplyBatch
from chiasm.train.parallel import World
from chiasm.train.policy_loss import PolicyLoss
from chiasm.train.preferences import PreferenceLoss, target_log_probs
from chiasm.train.reference import (
    BaseModel,
    StartingWeights,
    StoredReference,
    wants_base_model,
    weights_name,
)
from chiasm.train.stage import Stage

BASE = "adapters"
"""The saved name of the reference that is the model without its adapters."""


class Objective:
    """Called with a model and a batch: the model's own loss, that of preferences or of rollouts.

    folder, number: of the run and the stage. precision: of the stage's autocast. in_parts: ranks
    hold parts of the weights.
    """

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        number: int,
        precision: str,
        world: World,
        in_parts: bool,
    ):
        self.stage, self.precision, self.world, self.in_parts = stage, precision, world, in_parts
        self.file = folder / f"reference-{number}.safetensors"
        self.reference: Any = None
        self._resumed = ""
        self._loss: Any = None

    def begin(self, model: Any) -> bool:
        """Before the first step; whether all batches have to be seen with the weights as they are.
        Raises ConfigError for a model that cannot be trained by this loss."""
        preference, rollouts = self.stage.preference, self.stage.rollouts
        if preference is None and rollouts is None:
            return False
        self._check(model)
        if preference is not None:
            stored = preference.has_reference and self._find_stored(model, preference.reference)
            self._loss = PreferenceLoss(preference, self.reference)
            return stored
        assert rollouts is not None
        if rollouts.kl:
            self._find_weights(model, rollouts.reference)
        self._loss = PolicyLoss(rollouts, self.reference)
        return False

    def see(self, model: Any, batch: ReplyBatch) -> None:
        """Compute and keep what the loss of a later batch needs."""
        self.reference.add(model, batch)

    def __call__(self, model: Any, batch: Any) -> Loss:
        return model.loss(batch) if self._loss is None else self._loss(model, batch)

    def state_dict(self) -> dict:
        """Which reference it is: resumed, the weights are no longer those of the beginning."""
        if isinstance(self.reference, StoredReference):
            return {"reference": self.reference.name}
        return {"reference": "" if self.reference is None else
                BASE if isinstance(self.reference, BaseModel) else "start"}  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        self._resumed = state.get("reference", "")

    def close(self) -> None:
        if isinstance(self.reference, StoredReference):
            self.reference.close()

    def _check(self, model: Any) -> None:
        name = f"stage '{self.stage.name}'"
        if not hasattr(model, "logits"):
            raise ConfigError(
                f"{name}: a {type(model).__name__} has no replies to learn from; preference and "
                "rollouts are for an MLLM or a unified model"
            )
        if getattr(getattr(model, "config", None), "image_objective", "") == "masked":
            raise ConfigError(
                f"{name}: images drawn by masked diffusion have no log-probability to compare; use "
                "a model with model.image_objective next"
            )
        if self.stage.rollouts is not None and self.in_parts:
            raise ConfigError(
                f"{name}: replies are sampled with the whole model on every rank; raise "
                "ranks.fsdp_min_params, or use one rank"
            )

    def _find_stored(self, model: Any, wish: Any) -> bool:
        """The reference of a stage on pairs; whether it has to be computed."""
        if self._resumed:
            base = self._resumed == BASE
        else:
            base = wants_base_model(model, set(self.stage.lr), wish)
        if base:
            self.reference = BaseModel(target_log_probs)
            return False
        name = self._resumed or weights_name(model, self.precision, self.world.gather)
        self.reference = StoredReference(name, target_log_probs)
        return not self._resumed

    def _find_weights(self, model: Any, wish: Any) -> None:
        """The reference of a stage on rollouts, which are new every time."""
        assert self.stage.rollouts is not None
        temperature = self.stage.rollouts.temperature

        def log_probs(model: Any, batch: ReplyBatch) -> Any:
            return target_log_probs(model, batch, temperature)

        if self._resumed == BASE or (
            not self._resumed and wants_base_model(model, set(self.stage.lr), wish)
        ):
            self.reference = BaseModel(log_probs)
        else:
            resumed = bool(self._resumed)
            self.reference = StartingWeights(
                model, self.file, resumed, log_probs, self.world.is_main
            )
