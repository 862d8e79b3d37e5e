"""Which updates are let through, and what happens when they are not.

    skip        the step's gradients are dropped; training goes on with the next data
    rollback    after `patience` refusals in a row the weights and the optimiser go back to a
                checkpoint, the data does not: the window that led here is never seen again
    stop        after `rollbacks` of those, or with no checkpoint to go back to

PaLM restarted about 100 steps before a spike and left out the data around it (2204.02311, section
5.1); here that is the last resort before stopping, since a refused update has harmed nothing yet.
Plain numbers only: the loop brings them, and every rank brings the same.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from chiasm.train.stage import GuardSettings

Action = Literal["apply", "skip", "rollback", "stop"]


@dataclass(frozen=True)
class Verdict:
    """What to do with a step, and why where it is not applied."""

    action: Action
    reason: str = ""


class Guard:
    """Judges the steps of a stage in their order."""

    def __init__(self, settings: GuardSettings):
        self.settings = settings
        self._losses: deque[float] = deque(maxlen=settings.window)
        self._norms: deque[float] = deque(maxlen=settings.window)
        self._refused = 0
        self._rollbacks = 0
        self._since_rollback = 0

    def judge(self, loss: float, norm: float, can_return: Callable[[], bool]) -> Verdict:
        """loss: mean of the step; norm: of its gradient, both over all ranks. can_return: asked
        when it matters whether there is a checkpoint to go back to."""
        reason = _not_finite(loss, norm) or self._spike(loss, norm)
        if not reason:
            self._accept(loss, norm)
            return Verdict("apply")
        self._refused += 1
        if self._refused <= self.settings.patience:
            return Verdict("skip", reason)
        self._refused = 0
        if self._rollbacks < self.settings.rollbacks and can_return():
            self._rollbacks += 1
            self._since_rollback = 0
            return Verdict("rollback", reason)
        return Verdict("stop", reason)

    @property
    def rollbacks(self) -> int:
        """How often the weights have gone back for the trouble at hand."""
        return self._rollbacks

    def state_dict(self) -> dict:
        return {
            "losses": list(self._losses),
            "norms": list(self._norms),
            "refused": self._refused,
            "rollbacks": self._rollbacks,
            "since_rollback": self._since_rollback,
        }

    def load_state_dict(self, state: dict) -> None:
        self._losses.extend(state["losses"])
        self._norms.extend(state["norms"])
        self._refused, self._rollbacks = state["refused"], state["rollbacks"]
        self._since_rollback = state["since_rollback"]

    def _accept(self, loss: float, norm: float) -> None:
        self._losses.append(loss)
        self._norms.append(norm)
        self._refused = 0
        self._since_rollback += 1
        if self._since_rollback >= self.settings.window:  # that trouble is over
            self._rollbacks = 0

    def _spike(self, loss: float, norm: float) -> str:
        """Both, because either alone rises without harm: losses differ between kinds of data, and
        gradients between lengths."""
        threshold = self.settings.threshold
        if not threshold or len(self._losses) < max(4, self.settings.window // 4):
            return ""
        highest, steepest = upper(self._losses, threshold), upper(self._norms, threshold)
        if loss <= highest or norm <= steepest:
            return ""
        return (
            f"loss {loss:.4g} above {highest:.4g} and gradient norm {norm:.4g} above {steepest:.4g}"
        )


def upper(values: deque[float], threshold: float) -> float:
    """median + threshold · σ, with σ from the median absolute deviation (· 1.4826 for a normal
    distribution) but at least 2 % of the median: of nearly equal values none is a spike."""
    middle = statistics.median(values)
    deviation = 1.4826 * statistics.median(abs(value - middle) for value in values)
    return middle + threshold * max(deviation, 0.02 * abs(middle))


def _not_finite(loss: float, norm: float) -> str:
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            return f"{name} is {value}"
    return ""
