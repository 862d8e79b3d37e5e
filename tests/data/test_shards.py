"""Work by shards: killed and restarted, as an array, on Ray: the same bytes; other work refused."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.formats.messages import write_messages
from chiasm.data.load import load_samples
from chiasm.data.shard_import import ImportPlan
from chiasm.data.shards import numbers_of, run_on_ray, run_shards


@dataclass
class Squares:
    """Writes squares, and remembers which."""

    count: int = 5
    fingerprint: str = "squares"
    fail_at: int = -1

    def __post_init__(self):
        self.written = []

    def name(self, number):
        return f"part-{number}"

    def write(self, number, folder):
        (folder / f"part-{number}.txt").write_text(str(number**2))
        (folder / "below").mkdir()
        (folder / "below" / f"{number}.txt").write_text("x")
        if number == self.fail_at:
            raise RuntimeError("killed")
        self.written.append(number)
        return {"sum": number}

    def finish(self, out, manifests):
        (out / "all.json").write_text(json.dumps([m["sum"] for m in manifests]))


def content(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_what_failed_midway_goes_on_to_the_same_bytes(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert len(run_shards(Squares(), whole)) == 5
    with pytest.raises(RuntimeError):
        run_shards(Squares(fail_at=3), broken)
    assert not (broken / "all.json").exists()
    assert not (broken / "part-3.txt").exists()
    again = Squares()
    run_shards(again, broken)
    assert again.written == [3, 4]
    assert content(broken) == content(whole)


def test_what_is_complete_is_left_alone_and_what_is_lost_is_made_again(tmp_path):
    run_shards(Squares(), tmp_path)
    before = content(tmp_path)
    again = Squares()
    run_shards(again, tmp_path)
    assert again.written == []
    (tmp_path / "below" / "2.txt").unlink()
    (tmp_path / ".done" / "part-4.json").write_text("{")
    run_shards(again, tmp_path)
    assert again.written == [2, 4]
    assert content(tmp_path) == before


def test_an_array_of_jobs_in_any_order_is_one_go(tmp_path):
    run_shards(Squares(), tmp_path / "one")
    for index in (2, 0, 1):
        done = run_shards(Squares(), tmp_path / "three", numbers_of(5, index, 3))
        assert (done is not None) == (index == 1)
    assert content(tmp_path / "three") == content(tmp_path / "one")
    with pytest.raises(ConfigError, match="an array of 3 has 0 to 2"):
        numbers_of(5, 3, 3)


def test_other_work_is_refused(tmp_path):
    run_shards(Squares(), tmp_path)
    with pytest.raises(CheckpointError, match="made by other weights"):
        run_shards(Squares(fingerprint="cubes"), tmp_path)


# Imports.


def data(folder: Path, count: int = 11) -> Path:
    random = np.random.default_rng(0)
    samples = [
        Sample(
            (
                user(Image(PIL.Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8))), "?"),
                assistant("a" * (n + 1)),
            ),
            f"s{n}",
        )
        for n in range(count)
    ]
    write_messages(samples, folder / "train.jsonl")
    write_messages(samples[:2], folder / "test.jsonl")
    return folder


def test_an_import_by_shards_gives_all_samples(tmp_path):
    source = data(tmp_path / "in")
    (source / "images" / "bad.png").write_bytes(b"no image")
    with (source / "train.jsonl").open("a") as out:
        asked = {"role": "user", "content": [{"type": "image"}]}
        said = {"role": "assistant", "content": "a"}
        row = {"id": "bad", "images": ["images/bad.png"], "messages": [asked, said]}
        out.write(json.dumps(row) + "\n" + "no JSON\n")
    done = run_shards(ImportPlan(str(source), size=4).work(), tmp_path / "out")
    assert [one["kept"] for one in done] == [4, 4, 3]
    assert [list(one["unusable"]) for one in done] == [["in/train.jsonl:13"], [], ["bad"]]
    names = sorted(p.name for p in (tmp_path / "out").glob("*.tar"))
    assert names == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    run_shards(ImportPlan(str(source), "test", size=4).work(), tmp_path / "out")
    ours = load_samples(str(tmp_path / "out"), "train")
    theirs = load_samples(str(source), "train", lambda where, error: None)
    assert [s.id for s in ours] == [s.id for s in theirs][:-1]
    assert ours[5].images[0].load().tobytes() == theirs[5].images[0].load().tobytes()


def test_a_filter_by_shards_says_why(tmp_path):
    plan = ImportPlan(str(data(tmp_path / "in")), size=4, rules=("length:least=10",))
    done = run_shards(plan.work(), tmp_path / "out")
    dropped = [drop for one in done for drop in one["dropped"]]
    assert dropped
    assert all(drop["rule"] == "length" and drop["reason"] for drop in dropped)
    assert sum(one["kept"] for one in done) + len(dropped) == 11


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"to": "messages"}, "webdataset or parquet"),
        ({"rules": ("near-duplicate:least=0.9",)}, "run it without --shard"),
        ({"size": 0}, "at least one sample"),
    ],
)
def test_what_shards_cannot_do_is_told(options, said):
    with pytest.raises(ConfigError, match=said):
        ImportPlan("x", **options)


def test_killed_midway_and_restarted_gives_the_same_bytes(tmp_path):
    """A real process, killed without warning while it writes a shard."""
    source = data(tmp_path / "in")
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from chiasm.data import shard_import\n"
        "from chiasm.data.shards import run_shards\n"
        "check, seen = shard_import.check_media, []\n"
        "def dying(sample):\n"
        "    seen.append(sample)\n"
        "    if len(seen) == 6: os.kill(os.getpid(), 9)\n"
        "    check(sample)\n"
        "shard_import.check_media = dying\n"
        "run_shards(shard_import.ImportPlan(sys.argv[1], size=2).work(), Path(sys.argv[2]))\n"
    )
    out = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", script, str(source), str(out)], check=False)
    assert done.returncode == -9
    assert len(list(out.glob(".done/*.json"))) == 2
    assert len(list(out.glob(".*.unfinished"))) == 1
    plan = ImportPlan(str(source), size=2)
    run_shards(plan.work(), out)
    run_shards(plan.work(), tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="the extra ray is not installed")
def test_on_ray_it_is_the_same(tmp_path):
    import ray

    plan = ImportPlan(str(data(tmp_path / "in")), size=3)
    run_shards(plan.work(), tmp_path / "here")
    try:
        done = run_on_ray(plan, tmp_path / "ray", 2)
    finally:
        ray.shutdown()
    assert len(done) == 4
    assert content(tmp_path / "ray") == content(tmp_path / "here")
