"""chiasm isoflop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chiasm.cli.options import DeviceOptions, NewFolder


@dataclass(kw_only=True)
class Isoflop(DeviceOptions):
    """Train both routes within the same FLOPs; which wins at which budget, or cannot be told."""

    budget: float
    """The largest, in training FLOPs, parts such as encoder and tokenizer included."""
    data: str = "easy-vqa"
    """As of train; its test half is asked."""
    num_budgets: int = 3
    """So many budgets, each half of the one above."""
    seeds: int = 3
    """Runs of every model at every budget."""
    models: tuple[str, ...] = ("mllm-scratch", "unified", "mllm")
    """mllm-scratch (language model from random weights), unified, mllm (pretrained)."""
    num_questions: int = 1000
    """Asked of every model, at most."""
    max_tokens: int = 16
    """Longest reply."""
    metric: str = ""
    """As of eval."""
    out: NewFolder = Path("runs/isoflop")
    """Folder of the report and the raw results; a comparison stopped there goes on."""
    keep: bool = False
    """Keep the weights of every run."""
    plan: bool = False
    """Say what would be trained and how long it would take, and stop."""

    def __call__(self) -> None:
        self.use_device()
        from chiasm.recipes.duel import DuelSettings, choose_arms, duel

        settings = DuelSettings(
            self.data, self.budget, self.num_budgets, self.seeds, self.num_questions,
            self.max_tokens, self.metric, self.keep,
        )  # fmt: skip
        duel(settings, self.out, choose_arms(self.models), only_plan=self.plan)
