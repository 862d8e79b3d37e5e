"""What the machines of a plan can do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError


@dataclass(frozen=True)
class Accelerator:
    """peak: dense bfloat16 FLOP/s of the data sheet. memory: bytes. bandwidth: of that memory,
    bytes/s. node: how many one machine usually has. link: bytes/s from one machine to the others,
    an accelerator's share. price: US dollars an hour, what on-demand clouds ask about; --price sets
    another."""

    name: str
    peak: float
    memory: float
    bandwidth: float
    node: int = 8
    link: float = 25e9
    price: float = 0.0


GB = 1e9
KNOWN = {
    a.name.lower(): a
    for a in (
        Accelerator("B200", 2250e12, 180 * GB, 8.0e12, link=50e9, price=5.0),
        Accelerator("H200", 989e12, 141 * GB, 4.8e12, link=50e9, price=3.5),
        Accelerator("H100", 989e12, 80 * GB, 3.35e12, link=50e9, price=2.5),
        Accelerator("MI300X", 1307e12, 192 * GB, 5.3e12, link=50e9, price=3.0),
        Accelerator("A100", 312e12, 80 * GB, 2.0e12, price=1.5),
        Accelerator("A100-40GB", 312e12, 40 * GB, 1.55e12, price=1.2),
        Accelerator("L40S", 362e12, 48 * GB, 0.86e12, link=6e9, price=1.0),
        Accelerator("A10", 125e12, 24 * GB, 0.6e12, node=4, link=3e9, price=0.6),
        Accelerator("L4", 121e12, 24 * GB, 0.3e12, link=3e9, price=0.5),
        Accelerator("T4", 65e12, 16 * GB, 0.32e12, node=4, link=3e9, price=0.3),
        Accelerator("RTX4090", 165e12, 24 * GB, 1.0e12, node=1, link=1e9, price=0.4),
        Accelerator("TPUv5e", 197e12, 16 * GB, 0.82e12, node=256, price=1.2),
    )
}


@dataclass(frozen=True)
class Cluster:
    count: int
    kind: Accelerator

    @property
    def nodes(self) -> int:
        return -(-self.count // self.kind.node)

    def __str__(self) -> str:
        return f"{self.count} x {self.kind.name}"


def parse(text: str) -> Cluster:
    """ "64xH100" or "H100" -> the cluster. Raises ConfigError."""
    found = re.fullmatch(r"(?:(\d+)\s*[x*]\s*)?([A-Za-z][\w-]*)", text.strip())
    if found is None or found[1] == "0":
        raise ConfigError(f"--gpus {text}: expected a number and a kind, as 8xH100")
    kind = KNOWN.get(found[2].lower())
    if kind is None:
        names = [a.name for a in KNOWN.values()]
        raise ConfigError(
            f"--gpus {text}: unknown kind '{found[2]}'{nearest(found[2], names)}; "
            f"there are {', '.join(names)}"
        )
    return Cluster(int(found[1] or 1), kind)
