"""A toy model, its data, and two processes to train it in."""

import torch
from torch import nn

from chiasm.core.protocols import Cost, Loss
from chiasm.train.stage import Stage


class Toy(nn.Module):
    """Regression with dropout (so that the random state matters) in two groups."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 1)

    def loss(self, batch):
        x, y = batch
        error = (self.head(self.body(x))[:, 0] - y).square()
        return Loss(error.sum(), len(x), {"mse": (error.sum().item(), len(x))})

    def groups(self):
        return {"body": self.body, "head": self.head}

    def blocks(self):
        return [self.body]

    def cost(self, batch):
        return Cost(1.0, len(batch[0]), 0)


class ToyStream:
    """Batches that are a function of the place in the order; `poison` puts a NaN into one of them,
    `corrupt` places have labels a hundred times too large."""

    def __init__(self, size=4, poison=None, corrupt=()):
        self.size, self.poison, self.corrupt, self.cursor = size, poison, corrupt, 0
        self.data_shard = (0, 1)

    def split(self, data_shard, count):
        self.data_shard = (data_shard, count)

    def state_dict(self):
        return {"cursor": self.cursor}

    def load_state_dict(self, state):
        self.cursor = state["cursor"]

    def __iter__(self):
        while True:
            place = self.cursor * self.data_shard[1] + self.data_shard[0]
            generator = torch.Generator().manual_seed(place)
            x = torch.randn(self.size, 4, generator=generator)
            if place == self.poison:
                x[0, 0] = float("nan")
            self.cursor += 1
            yield x, x.sum(1) * (100.0 if place in self.corrupt else 1.0)


def toy():
    torch.manual_seed(0)
    return Toy()


STAGES = (
    Stage("one", 6, lr={"head": 1e-2}, save_every=2, log_every=1),
    Stage("two", 6, lr={"head": 1e-2, "body": 1e-2}, save_every=2, optimizer="muon", log_every=1),
)
