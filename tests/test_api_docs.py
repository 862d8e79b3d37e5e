"""docs/api.md, README and the notebook: their code is run as it is written, on toy models."""

import json
import re
import shutil
from pathlib import Path

import PIL.Image
import pytest

import chiasm
from route_toys import make_parts, mllm_recipe, samples, unified_recipe

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
NOTEBOOK = Path(__file__).parents[1] / "examples" / "tour.ipynb"
README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the runs, data and images that the pages name."""
    folder = make_parts(tmp_path_factory.mktemp("docs"))
    (folder / "data").rename(folder / "my-data")
    for make, name in ((mllm_recipe, "mllm"), (unified_recipe, "unified")):
        recipe = make(folder, steps=1)
        out = folder / "runs" / "demo" / name
        data = folder / "my-data"
        chiasm.train(recipe, data=data, out=out, device="cpu", progress=False)
    for number, name in enumerate(("photo.png", "other.png")):
        samples(2)[number].images[0].load().save(folder / name)
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it, where a page's blocks are run."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CHIASM_DEVICE", "cpu")
    return tmp_path / "here"


def test_every_block_runs(place, capsys):
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) >= 8
    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/api.md, block {number + 1}", "exec"), names)
    assert names["result"].n == 12
    assert 0 <= names["result"].interval[0] <= names["result"].interval[1] <= 1
    assert PIL.Image.open("circle.png").size == names["images"][0].size
    assert (place / "out" / "README.md").exists()
    assert names["resumed"].state_dict() == names["batches"].state_dict()
    assert capsys.readouterr().out


def test_the_lines_of_the_readme_run(place):
    (block,) = BLOCK.findall(README.read_text())
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert len(names["images"]) == 4
    assert 0 <= chiasm.evaluate(names["run"], "my-data", progress=False).accuracy <= 1


def test_every_cell_of_the_notebook_runs(place):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells), "clear the outputs before a commit"
    names: dict = {}
    for number, cell in enumerate(c for c in cells if c["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), f"tour.ipynb, code cell {number + 1}", "exec"), names)
    assert names["losses"]
    assert names["result"].n == 12
    assert (place / "saved" / "README.md").exists()
