"""Parts of one's own, named module:Class, train, are saved and load again; and what may be run."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import own_parts
from chiasm import cli
from chiasm.core import registry
from chiasm.core.batch import pack
from chiasm.core.config import from_dict, override, to_dict
from chiasm.core.errors import ConfigError, DataError
from chiasm.data.formats.registry import FORMATS as DATA_FORMATS
from chiasm.data.formats.registry import by_name, detect
from chiasm.data.load import load_samples, open_data, prefixed
from chiasm.eval.scoring import find_metric
from chiasm.hub import autoencoder, mllm
from chiasm.hub.formats import FORMATS as LAYOUTS
from chiasm.hub.formats import CheckpointFormat
from chiasm.hub.load import layout_of, load
from chiasm.mllm.config import CustomProjector, MLLMConfig
from chiasm.nn.flops import matrix_parameters
from chiasm.plan.memory import without_storage
from chiasm.recipes.eval_task import Asked
from chiasm.recipes.meta_model import Assumed, outline_of, typical
from chiasm.recipes.planning import report
from chiasm.recipes.recipe import find
from chiasm.recipes.run import run
from chiasm.unified.autoencoder import Autoencoder
from chiasm.unified.config import AutoencoderConfig
from route_toys import make_parts, mllm_recipe, unified_recipe

TESTS = Path(own_parts.__file__).resolve().parent
MEAN = '{"kind": "own_parts:MeanConfig", "sizes": [6]}'


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch):
    monkeypatch.setenv(registry.VARIABLE, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def trained(folder):
    """A run with a projector, image processing and an objective of the user's own."""
    recipe = mllm_recipe(folder)
    stages = tuple(replace(each, steps=2) for each in recipe.stages)
    recipe = override(
        replace(recipe, stages=stages),
        {
            "model.projector": MEAN,
            "model.image_processing": "own_parts:GreyConfig",
            "stages.1.objectives": "chat+own_parts:Backwards",
        },
    )
    run(recipe, folder / "run")
    return recipe, folder / "run"


def test_a_run_with_parts_of_ones_own_is_saved_by_their_names_and_loads(trained):
    _, place = trained
    saved = json.loads((place / "model.json").read_text())["model"]
    assert saved["projector"] == json.loads(MEAN)
    assert saved["image_processing"] == {"kind": "own_parts:GreyConfig"}
    model, processor = load(place, "cpu")
    assert isinstance(model.projector, own_parts.Mean)
    assert model.projector.config == own_parts.MeanConfig([6])
    assert isinstance(processor.codec.mode, own_parts.Grey)
    again = load(place, "cpu")[0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_the_cost_model_counts_a_projector_of_ones_own(trained, folder):
    _, place = trained
    model, processor = load(place, "cpu")
    samples = load_samples(str(folder / "data"), "train")
    [(encoded, _), *_] = processor.prompts(samples[:1])
    batch = pack([[encoded]])
    model.requires_grad_(False)
    images, weights = len(batch.image_grids), matrix_parameters(model.projector)
    assert model.cost(batch).parts["projector"] == 2 * weights * images
    # Also of a module that no configuration describes.
    model.projector.config = None
    model.projector.flops_by_shape.clear()
    assert model.cost(batch).parts["projector"] == 2 * weights * images
    model.requires_grad_(True)
    trained_cost = model.cost(batch).parts["projector"]
    assert trained_cost == 3 * 2 * weights * images
    with pytest.raises(ConfigError, match="Mean cannot be saved, as no configuration says how"):
        mllm.save(place.parent / "unsaved", model, processor, trained[0].model)
    assert not (place.parent / "unsaved" / "model.json").exists()


def test_a_plan_counts_it_too(trained, capsys):
    recipe, _ = trained
    assumed = Assumed(16, (32, 32))
    with without_storage():
        outlined = outline_of(recipe.model, assumed)
    batch = typical(outlined, recipe.stages[1], assumed)
    assert outlined.model.cost(batch).parts["projector"] > 0
    report(recipe, None, assumed, 0.4, None, False)
    assert "projector" in capsys.readouterr().out


def test_what_an_objective_of_ones_own_makes_is_learnt(folder):
    samples = load_samples(str(folder / "data"), "train")
    seen = own_parts.Backwards(samples)(samples[0], None)
    assert seen.turns[-1].text == samples[0].meta["caption"][::-1]
    recipe = unified_recipe(folder, objectives="own_parts:Backwards")
    run(replace(recipe, stages=recipe.stages[1:]), folder / "objective")
    recipe = unified_recipe(folder, objectives="own_parts:Missing")
    with pytest.raises(ConfigError, match="'own_parts:Missing': there is no Missing in "):
        run(recipe, folder / "missing")
    recipe = unified_recipe(folder, objectives="own_parts:NoProjector")
    with pytest.raises(ConfigError, match="is no objective: it must be a subclass of Objective"):
        run(recipe, folder / "no")


def test_a_quantizer_of_ones_own_is_saved_and_loads(tmp_path):
    config = override(
        AutoencoderConfig(), {"quantizer": "own_parts:SignConfig", "image_size": "32"}
    )
    model = Autoencoder(config).eval()
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        autoencoder.save(tmp_path / "codes", model)
        again, _ = load(tmp_path / "codes", "cpu")
        assert again.config.quantizer == own_parts.SignConfig(4)
        assert torch.equal(again.encode(pixels), model.encode(pixels))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_parts:NoDataclass", "own_parts:NoDataclass is no dataclass"),
        ("own_parts:NoProjector", "own_parts:NoProjector is no subclass of CustomProjector"),
        ("own_parts:SignConfig", "own_parts:SignConfig is no subclass of CustomProjector"),
        ("os:system", "os:system is no subclass of CustomProjector"),
        ("own_parts:Absent", "there is no Absent in "),
        ("mlpp", "unknown kind 'mlpp', expected one of .*, or module:Class of your own; did you "
         "mean 'mlp'"),
        ("no_such_parts:A", "no module called 'no_such_parts' can be imported; set PYTHONPATH"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_projector_is_refused_in_one_line(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        override(MLLMConfig(), {"projector": json.dumps({"kind": name})})
    assert "\n" not in str(caught.value)


def test_a_class_inside_a_function_is_refused_before_it_is_trained():
    @dataclass(frozen=True)
    class Inside(CustomProjector):
        pass

    with pytest.raises(ConfigError, match="a class inside a function cannot be found again"):
        to_dict(MLLMConfig(projector=Inside()))


@pytest.fixture
def strange(tmp_path):
    """A module on the path that leaves a file behind when it is imported."""
    name = f"strange_{os.getpid()}_{abs(hash(tmp_path))}"
    mark = tmp_path / "was_run"
    (tmp_path / f"{name}.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from dataclasses import dataclass\n"
        "from chiasm.mllm.config import CustomProjector\n"
        "@dataclass(frozen=True)\nclass Config(CustomProjector):\n    pass\n"
    )
    sys.path.insert(0, str(tmp_path))
    yield name, mark
    sys.path.remove(str(tmp_path))
    sys.modules.pop(name, None)


def test_a_saved_name_imports_nothing_unless_it_is_allowed(strange):
    name, mark = strange
    saved = to_dict(MLLMConfig()) | {"projector": {"kind": f"{name}:Config"}}
    with pytest.raises(ConfigError, match=f"a file does not choose .* --allow-custom {name}"):
        from_dict(MLLMConfig, saved)
    assert not mark.exists()
    registry.allow_custom(name)
    assert mark.exists()
    assert type(from_dict(MLLMConfig, saved).projector).__name__ == "Config"


def test_a_name_on_the_command_line_is_allowed_and_a_file_can_be(strange):
    name, mark = strange
    made = override(MLLMConfig(), {"projector": f"{name}:Config"})
    assert to_dict(made)["projector"] == {"kind": f"{name}:Config"}
    sys.modules.pop(name)
    sys.path.remove(str(mark.parent))
    saved = to_dict(made)
    os.environ[registry.VARIABLE] = ""
    with pytest.raises(ConfigError, match="not imported"):
        from_dict(MLLMConfig, saved)
    registry.allow_custom(str(mark.parent / f"{name}.py"))
    assert to_dict(from_dict(MLLMConfig, saved)) == saved
    sys.path.insert(0, str(mark.parent))
    with pytest.raises(ConfigError, match=r"nowhere\.py: no such file"):
        registry.allow_custom("nowhere.py")


def test_a_recipe_file_may_define_its_projector(tmp_path):
    file = tmp_path / "recipe_with_parts.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, replace\n"
        "from chiasm.mllm.config import CustomProjector\n"
        "from chiasm.recipes.mllm_smol import recipe as base\n"
        "@dataclass(frozen=True)\nclass Config(CustomProjector):\n    size: int = 3\n"
        "def recipe():\n"
        "    made = base()\n"
        "    return replace(made, model=replace(made.model, projector=Config()))\n"
    )
    made = override(find(str(file)), {"model.projector.size": "5"})
    assert made.model.projector.size == 5
    assert to_dict(made)["model"]["projector"] == {"kind": "recipe_with_parts:Config", "size": 5}


def test_a_process_without_its_module_loads_such_a_run_where_it_is_allowed(trained, monkeypatch):
    monkeypatch.delitem(sys.modules, "own_parts")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p).resolve() != TESTS])
    with pytest.raises(ConfigError, match=r"of the module own_parts, .* --allow-custom own_parts"):
        load(trained[1], "cpu")
    model, _ = load(trained[1], "cpu", allow_custom=[str(TESTS / "own_parts.py")])
    assert type(model.projector).__name__ == "Mean"
    assert type(model.projector) is not own_parts.Mean  # made of the file anew


def test_the_command_line_takes_allow_custom_with_every_command(trained, folder, capsys):
    test = str(folder / "data" / "test.jsonl")
    common = ["eval", str(trained[1]), "--task", test, "--limit", "2", "--device", "cpu"]
    with suppress(SystemExit):
        cli.main([*common, "--allow-custom", "own_parts"])
    assert os.environ[registry.VARIABLE] == "own_parts"
    assert "error" not in capsys.readouterr().err
    for words, message in (
        (["--allow-custom=nowhere_parts"], "no module called 'nowhere_parts' can be imported"),
        (["--allow-custom"], "write a module, or a file that ends in .py"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main([*common, *words])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


@pytest.fixture
def lines(tmp_path):
    (tmp_path / "own.shout").write_text("HELLO\nGOOD DAY\n")
    (tmp_path / "a").write_text("HELLO\n")
    return tmp_path


def test_a_format_of_ones_own_is_named_before_the_path_or_registered(lines, monkeypatch):
    file = lines / "own.shout"
    name, path = prefixed(f"own_parts:SHOUTED:{file}")
    assert (name, path) == ("own_parts:SHOUTED", file)
    [first, second] = open_data(f"own_parts:SHOUTED:{file}")["train"].samples
    assert [turn.text for turn in (*first.turns, *second.turns)] == [
        "hello", "HELLO", "good day", "GOOD DAY",
    ]  # fmt: skip
    with pytest.raises(DataError, match="no known format"):
        detect(file)
    monkeypatch.setattr(DATA_FORMATS, "_entries", dict(DATA_FORMATS._entries))
    DATA_FORMATS.register("shouted", own_parts.SHOUTED)
    assert detect(file) is own_parts.SHOUTED
    assert by_name("shouted") is own_parts.SHOUTED
    with pytest.raises(ConfigError, match="'own_parts:LOUD' is no format: it must be a"):
        by_name("own_parts:LOUD")


def test_a_benchmark_with_a_metric_of_ones_own(lines):
    asked = Asked("own_parts:SHOUTING", folder=lines)
    assert (asked.benchmark, asked.name) == (True, "SHOUTING")
    task = asked.question_task()
    [sample] = task.samples()
    assert task.score(sample, "AHA")["correct"] == 1.0
    assert task.score(sample, "aha")["correct"] == 0.0
    assert not Asked(f"own_parts:SHOUTED:{lines / 'own.shout'}").benchmark
    assert not Asked("llava:own_data").benchmark  # FORMAT:PATH
    with pytest.raises(ConfigError, match="'own_parts:SHOUTED' is no metric: it must be a Metric"):
        find_metric("own_parts:SHOUTED")


def test_a_layout_of_ones_own_reads_folders(lines, monkeypatch):
    class Mine(CheckpointFormat):
        name, target = "mine", "hf"

        def recognises(self, config):
            return config.get("model_type") == "mine"

    monkeypatch.setattr(LAYOUTS, "_entries", dict(LAYOUTS._entries))
    LAYOUTS.register("mine", Mine())
    (lines / "config.json").write_text('{"model_type": "mine"}')
    assert layout_of(lines) is LAYOUTS["mine"]
    assert LAYOUTS.find("mine") is LAYOUTS["mine"]


def test_tags_of_chiasm_are_not_replaced_and_ones_own_may_be_defined_again():
    parts: registry.Registry[int] = registry.Registry("number", int, {"one": 1})
    with pytest.raises(ConfigError, match="the tag 'one' belongs to another number"):
        parts.register("one", 2)
    parts.register("two", 2)
    parts.register("two", 3)
    assert parts.find("two") == 3
    with pytest.raises(ConfigError, match="'three' is no number: it must be a int"):
        parts.register("three", "3")
    with pytest.raises(ConfigError, match="has a colon"):
        parts.register("a:b", 4)
    with pytest.raises(ConfigError, match="unknown number 'on'; did you mean 'one'"):
        parts.find("on")
