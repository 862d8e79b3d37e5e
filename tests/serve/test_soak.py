"""A server whose queue is always full, for minutes: nothing lost, nothing kept, counts that agree.

CHIASM_SOAK sets its seconds (300 in make test-all).
"""

import os
import threading
import time
from collections import Counter

import openai
import pytest
import torch
from serve_toys import KEY, Background, http, image_part, pixels

from chiasm.serve.limits import Limits
from chiasm.train.throughput import memory_in_use

SECONDS = float(os.environ.get("CHIASM_SOAK", "300"))
CLIENTS, SLOTS, WAITING = 32, 4, 8


class Client(threading.Thread):
    """Asks without a pause, what was seen before and what was not; counts what it hears."""

    def __init__(self, running, number, until):
        super().__init__()
        self.api, self.number, self.until = running.client(), number, until
        self.heard, self.tokens, self.lost = Counter(), 0, []

    def run(self):
        turn = 0
        while time.monotonic() < self.until:
            turn += 1
            try:
                self.tokens += self.ask(turn)
                self.heard["200"] += 1
            except openai.RateLimitError as error:
                self.heard["429"] += 1
                if int(error.response.headers["retry-after"]) < 1:
                    self.lost.append("a refusal that says to come back at once")
                time.sleep(0.05)
            except Exception as error:
                self.lost.append(repr(error))

    def ask(self, turn):
        fresh = self.number * 100_000 + turn
        image = image_part(pixels(fresh if turn % 2 else turn % 5, (12, 10)))
        wanted = {
            "model": ("reads", "draws")[self.number % 2],
            "messages": [{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}],
            "max_tokens": 8,
            "temperature": 1.0,
            "seed": fresh,
        }
        if turn % 3:
            return self.api.chat.completions.create(**wanted).usage.completion_tokens
        usage = {"include_usage": True}
        *_, last = self.api.chat.completions.create(**wanted, stream=True, stream_options=usage)
        return last.usage.completion_tokens


@pytest.mark.slow
def test_minutes_at_a_full_queue_lose_and_keep_nothing(toys):
    models = {name: toys[name] for name in ("reads", "draws")}
    with Background(models, Limits(tokens=64), slots=SLOTS, waiting=WAITING) as running:
        began = time.monotonic()
        clients = [Client(running, n, began + SECONDS) for n in range(CLIENTS)]
        memory = []
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            time.sleep(min(1.0, SECONDS / 20))
            memory.append(1e9 * memory_in_use(torch.device("cpu")))
        heard = sum((client.heard for client in clients), Counter())
        assert [client.lost for client in clients] == [[]] * CLIENTS
        assert min(client.heard["200"] for client in clients) > 0
        assert heard["429"] > 0, "the queue was never full"
        assert running.idle()
        counted = http.get(f"{running.url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
        found = dict(line.rpartition(" ")[::2] for line in counted.text.splitlines())
        route = 'chiasm_requests_total{route="/v1/chat/completions",status="%s"}'
        for status, times in heard.items():
            assert float(found[route % status]) == times
        done = [float(found[f'chiasm_replies_total{{how="done",model="{m}"}}']) for m in models]
        assert sum(done) == heard["200"]
        kinds = [f'chiasm_{kind}_tokens_total{{model="{m}"}}' for m in models
                 for kind in ("text", "image")]  # fmt: skip
        assert sum(float(found[kind]) for kind in kinds) == sum(c.tokens for c in clients)
    settled, end = memory[len(memory) // 3], memory[-1]
    print(f"{heard} {settled / 2**20:.0f} -> {end / 2**20:.0f} MiB")
    assert end - settled < 64 * 2**20, f"{settled / 2**20:.0f} -> {end / 2**20:.0f} MiB"
