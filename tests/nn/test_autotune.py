"""A fast path is taken only where it is faster, once for a class of shapes."""

import json
import subprocess
import sys
import time

import pytest
import torch

from chiasm.nn import autotune, norm
from chiasm.nn.autotune import fastest_kernel, fastest_name


def sleeping(seconds):
    return lambda *_: time.sleep(seconds)


def makers(**seconds):
    return {name: lambda s=s: sleeping(s) for name, s in seconds.items()}


@pytest.mark.parametrize(
    ("seconds", "name"),
    [
        ({"fast": 0.02, "plain": 0.002}, "plain"),
        ({"fast": 0.001, "plain": 0.02}, "fast"),
        ({"first": 0.01, "second": 0.002, "plain": 0.01}, "second"),
    ],
)
def test_the_fastest_is_chosen(seconds, name, fresh_choices):
    assert fastest_name("a", makers(**seconds), [()]) == name


def test_of_two_that_are_as_fast_the_preferred_one(monkeypatch, fresh_choices):
    same = {"first": 1.02, "second": 1.0, "plain": 1.05}
    monkeypatch.setattr(autotune, "timed", lambda kernels, _call: {n: same[n] for n in kernels})
    assert fastest_name("a", makers(first=0, second=0, plain=0), [(), ()]) == "first"


def refusing():
    raise RuntimeError("needs the cpu support amx")


def test_what_this_machine_does_not_have_is_not_taken(fresh_choices):
    lacking = {"refused": refusing, "none": lambda: None, "fails": lambda: lambda: refusing()}
    assert fastest_name("a", {**lacking, **makers(plain=0.001)}, [()]) == "plain"


def test_a_hopeless_kernel_is_called_a_few_times_only(fresh_choices):
    calls = []

    def slow(*_):
        calls.append(0)
        time.sleep(0.12)

    kernels = {"slow": lambda: slow, **makers(plain=0.0001)}
    assert fastest_name("a", kernels, [(1,), (8,)]) == "plain"
    assert len(calls) == 2


def test_a_choice_is_kept_for_the_machine_and_shapes(fresh_choices):
    assert fastest_name("a", makers(fast=0.01, plain=0.001), [()]) == "plain"
    assert fastest_name("b", makers(fast=0.001, plain=0.01), [()]) == "fast"
    kept = [json.loads(file.read_text()) for file in fresh_choices.glob("*/*.json")]
    assert {each["choice"]: each["kernel"] for each in kept} == {"a": "plain", "b": "fast"}
    assert not list(fresh_choices.glob("*/*.part"))
    program = """
from chiasm.nn.autotune import fastest_name
import torch; torch.set_num_threads(1)
print(fastest_name("a", {"fast": lambda: lambda: 0, "plain": lambda: lambda: 0}, [()]))
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert told.stdout.split() == ["plain"], told.stderr  # not timed anew


def test_the_first_of_two_processes_decides(monkeypatch, fresh_choices):
    def meanwhile(kernels, _call):
        folder = autotune._folder()
        folder.mkdir(parents=True)
        autotune._file(folder, "a").write_text(json.dumps({"kernel": "plain"}))
        return {"fast": 1.0, "plain": 2.0}

    monkeypatch.setattr(autotune, "timed", meanwhile)
    assert fastest_name("a", makers(fast=0, plain=0), [()]) == "plain"


def test_a_folder_that_cannot_be_written_to_is_no_error(monkeypatch, tmp_path, fresh_choices):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "file"))
    assert fastest_name("a", makers(fast=0.001, plain=0.01), [()]) == "fast"
    assert fastest_name("a", makers(fast=0.01, plain=0.001), [()]) == "fast"  # once a process


def test_timing_does_not_see_the_callers_modes(fresh_choices):
    seen = []

    def kernel():
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))

    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        fastest_kernel("a", {"fast": lambda: kernel, "plain": lambda: kernel}, [()])
    assert set(seen) == {(False, False)}


def test_a_choice_may_depend_on_another(fresh_choices):
    def outer():
        return fastest_name("inner", makers(fast=0.01, plain=0.001), [()])

    assert fastest_name("outer", {"fast": lambda: outer, "plain": lambda: outer}, [()])
    assert autotune._read(autotune._folder(), "inner") == "plain"


@pytest.mark.parametrize("trained", [False, True])
def test_a_slow_norm_is_not_taken(trained, monkeypatch, fresh_choices):
    fast = "_by_function" if trained else "_by_lengths"
    taken = getattr(norm, fast)

    def slow(*given):
        time.sleep(0.02)
        return taken(*given)

    monkeypatch.setattr(norm, fast, slow)
    layer, x = norm.RMSNorm(48, eps=1e-5), torch.randn(4, 48)
    with torch.set_grad_enabled(trained):
        layer(x)
        began = time.perf_counter()
        for _ in range(5):
            found = layer(x)
        assert time.perf_counter() - began < 0.1
    torch.testing.assert_close(found, torch.nn.functional.rms_norm(x, (48,), eps=1e-5))


def test_a_norm_timed_inside_checkpointing_leaves_its_tensors_alone(fresh_choices):
    layer, x = norm.RMSNorm(48, eps=1e-5), torch.randn(4, 48, requires_grad=True)
    layer(torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)).sum().backward()
    assert x.grad is not None
