"""Import and inspection of this source tree against those of another one: python -m
benchmarks.data_versions TREE [--rounds N].

TREE is a checkout of another version. Both import and inspect the same sets in turns, each round in
a process of its own, and CPU seconds count, so that other work on the machine disturbs less. The
sets: 300 JPEG images of 500 x 375 in messages JSONL, 3,000 conversations of text alone, and 3,000
LLaVA conversations whose images are one small file. The JSON line has the ratio of each (above 1
this tree is faster), the worst of them as the result.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image

from benchmarks.harness import alternate, report, result

ROUND = """
import sys, time
from pathlib import Path
from chiasm.data.convert import convert
from chiasm.data.inspect.measure import inspect_data
began = time.process_time()
if sys.argv[1] == "import":
    convert(sys.argv[2], Path(sys.argv[3]))
else:
    inspect_data(sys.argv[2])
print(time.process_time() - began)
"""
IMAGES, TEXTS = 300, 3000


def make_sets(folder: Path) -> dict[str, int]:
    """The sets below a folder; how many records each has."""
    random = np.random.default_rng(0)
    rows: dict[str, list[dict]] = {"images": [], "text": [], "llava": []}
    for n in range(IMAGES):
        coarse = PIL.Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        buffer = io.BytesIO()
        coarse.resize((500, 375), PIL.Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        name = f"images/{n}.jpg"
        (folder / "images/images").mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(buffer.getvalue())
        parts = [{"type": "image"}, {"type": "text", "text": f"What is {n}?"}]
        said = [{"role": "user", "content": parts}, {"role": "assistant", "content": f"It is {n}."}]
        rows["images"].append({"id": f"s{n}", "images": [name], "messages": said})
    for n in range(TEXTS):
        asked, reply = f"What is {n}? " + "word " * 40, f"It is {n}."
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
        rows["text"].append({"id": f"s{n}", "messages": said})
        said = [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": reply}]
        rows["llava"].append({"id": f"s{n}", "image": "a.png", "conversations": said})
    for name, found in rows.items():
        (folder / name).mkdir(exist_ok=True)
        lines = (f"{json.dumps(row)}\n" for row in found)
        (folder / name / "train.jsonl").write_text("".join(lines))
        (folder / name / "test.jsonl").write_text(f"{json.dumps({**found[0], 'id': 'test'})}\n")
    PIL.Image.new("RGB", (8, 8)).save(folder / "llava/a.png")
    return {name: len(found) + 1 for name, found in rows.items()}


class Clock:
    """CPU seconds that the rounds of one kind of work have taken in their processes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def run(self, tree: Path, what: str, data: Path, count: int) -> Callable[[], float]:
        def one() -> float:
            with tempfile.TemporaryDirectory() as out:
                place = {"PYTHONPATH": str(tree / "src"), "CHIASM_CACHE": out}
                done = subprocess.run(
                    [sys.executable, "-c", ROUND, what, str(data), f"{out}/made"],
                    env={**os.environ, **place},
                    cwd=tree,
                    check=True,
                    capture_output=True,
                    text=True,
                )
            self.seconds += float(done.stdout.split()[-1])
            return float(count)

        return one


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tree", type=Path, help="a checkout of another version")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    own = Path(__file__).resolve().parents[1]
    parts = {}
    with tempfile.TemporaryDirectory() as place:
        for name, count in make_sets(Path(place)).items():
            for what in ("import", "inspect"):
                clock = Clock()
                sides = [
                    clock.run(tree, what, Path(place) / name, count)
                    for tree in (own, given.tree.resolve())
                ]
                measured = alternate(sides[0], sides[1], given.rounds, clock)
                parts[f"{what}_{name}"] = result("records/s", measured)
    least = min(parts, key=lambda part: parts[part]["ratio"])
    report("data_versions", {**parts[least], "parts": parts})


if __name__ == "__main__":
    main()
