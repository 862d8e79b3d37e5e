"""What all routes share: the models, the limits, the counters and a few threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from chiasm.generation.generator import Generator
from chiasm.serve.constrain import Constraints
from chiasm.serve.engine import Engine
from chiasm.serve.errors import ApiError
from chiasm.serve.limits import Budget, Limits
from chiasm.serve.metrics import Metrics
from chiasm.vision.dual import Dual

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Served:
    """A model under its name: one that talks has an engine and rules for JSON, one that embeds a
    dual encoder and a thread that owns it."""

    name: str
    engine: Engine | None = None
    constraints: Constraints | None = None
    dual: Dual | None = None
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    queued: int = 0

    @property
    def abilities(self) -> list[str]:
        if self.engine is None:
            return ["embeddings"]
        return ["chat", "images"] if self.engine.draws else ["chat"]


class Server:
    """models: name -> a Generator (chat, images) or a Dual (embeddings)."""

    def __init__(
        self,
        models: dict[str, Generator | Dual],
        limits: Limits | None = None,
        slots: int = 16,
        waiting: int = 64,
    ):
        self.limits, self.metrics = limits or Limits(), Metrics()
        self.budget = Budget(self.limits.held)
        self.started = int(time.time())
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self.waiting = waiting
        self.models: dict[str, Served] = {}
        for name, model in models.items():
            if isinstance(model, Generator):
                engine = Engine(name, model, slots, waiting, metrics=self.metrics)
                self.models[name] = Served(name, engine, Constraints(model.processor.template))
            else:
                self.models[name] = Served(name, dual=model)

    @property
    def ready(self) -> bool:
        return all(s.engine is None or s.engine.alive for s in self.models.values())

    def start(self) -> None:
        for served in self.models.values():
            if served.engine is not None:
                served.engine.start()

    def stop(self) -> None:
        for served in self.models.values():
            if served.engine is not None:
                served.engine.stop()
            served.thread.shutdown(cancel_futures=True)
        self.pool.shutdown(cancel_futures=True)

    def find(self, name: str, ability: str | None = None) -> Served:
        """Raises ApiError for a name nobody has, or a model that has not the ability."""
        served = self.models.get(name)
        if served is None:
            known = ", ".join(self.models)
            raise ApiError(
                404, f"no model '{name}'; there are: {known}", "model", "model_not_found"
            )
        if ability is not None and ability not in served.abilities:
            others = [m.name for m in self.models.values() if ability in m.abilities]
            raise ApiError(400, _lacks(served, ability, others), "model", _CODES[ability])
        return served

    def talker(self, name: str, ability: str = "chat") -> Engine:
        engine = self.find(name, ability).engine
        assert engine is not None
        return engine

    def constraints(self, name: str) -> Constraints:
        found = self.find(name, "chat").constraints
        assert found is not None
        return found

    async def run(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function on a thread of its own, so that it does not hold up other requests."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, lambda: act(*args, **kwargs))


_CODES = {"chat": "not_a_chat_model", "images": "not_generative", "embeddings": "not_an_encoder"}


def _lacks(served: Served, ability: str, others: Sequence[str]) -> str:
    can = {
        "chat": f"the model '{served.name}' is an encoder: it embeds images and texts, and does "
        "not talk",
        "images": f"the model '{served.name}' cannot draw images; only unified models can",
        "embeddings": f"the model '{served.name}' is no contrastive encoder: it embeds nothing",
    }
    return f"{can[ability]}; " + (f"use {', '.join(others)}" if others else "none here can")
