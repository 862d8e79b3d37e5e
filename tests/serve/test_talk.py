"""chiasm chat: a session on the engine, what it keeps, shows and refuses."""

import io
import subprocess
import sys

import PIL.Image
import pytest
from serve_toys import encoded, pixels

import chiasm.recipes.chat as talk
from chiasm.core.errors import DataError, NotGenerativeError
from chiasm.core.protocols import SamplingParams
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.recipes.chat import ask, session

SAMPLING = SamplingParams(max_tokens=10)


@pytest.fixture
def typed(monkeypatch, toys):
    """A session with a toy: what is typed, what is printed."""

    def run(model, *lines, image=None, way=None):
        monkeypatch.setattr(talk, "responder", lambda _run: toys[model])
        monkeypatch.setattr(talk, "way_of", lambda *_: way)
        left = iter([*lines, ""])
        monkeypatch.setattr(talk, "_read", lambda _console: next(left))
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        session("nowhere", image, SAMPLING)
        return out.getvalue()

    return run


def alone(respond, *turns):
    pieces = respond([Sample(turns)], SAMPLING)
    return "".join(piece.text for _, piece in pieces)


def test_a_conversation_is_told_whole_and_a_new_image_begins_another(typed, toys, tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(encoded(pixels(1)))
    printed = typed("reads", "what?", "really?", f"/image {file}", "red?", image=file)
    respond, image = toys["reads"], Image(file)
    first = alone(respond, user(image, "what?"))
    second = alone(
        respond, user(image, "what?"), assistant(*[first] if first else []), user("really?")
    )
    third = alone(respond, user(image, "red?"))
    assert printed.endswith(f"{first}\n{second}\n{third}\n")


def test_a_drawing_is_shown_and_kept(typed, tmp_path):
    file = tmp_path / "drawn.png"
    printed = typed("draws", "/draw a circle", f"/save {file}", "what is it?", way="blocks")
    assert "▀" in printed
    assert PIL.Image.open(file).size == (8, 8)


def test_where_it_looked_is_shown(typed, tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(encoded(pixels(1)))
    plain = typed("reads", "what colour is it?", image=file, way="blocks")
    looked = typed("reads", "what colour is it?", "/look", image=file, way="blocks")
    assert looked.count("▀") > plain.count("▀") > 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/draw a circle", "cannot draw"),
        ("/save x.png", "no drawing yet"),
        ("/look", "no reply yet"),
        ("/image nowhere.png", "no such image"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_the_session_goes_on(line, message, typed, toys):
    printed = typed("reads", line, "red?", way="blocks")
    assert message in printed.replace("\n", " ")
    assert printed.endswith(alone(toys["reads"], user("red?")) + "\n")


def test_one_question_and_its_errors(monkeypatch, toys, capsys):
    monkeypatch.setattr(talk, "responder", lambda _run: toys["reads"])
    ask("nowhere", None, "red?", SAMPLING)
    assert capsys.readouterr().out == alone(toys["reads"], user("red?")) + "\n"
    with pytest.raises(DataError, match="shorten it"):
        ask("nowhere", None, "red " * 3000, SAMPLING)
    with pytest.raises(NotGenerativeError):
        ask("nowhere", None, "red", SamplingParams(max_images=1))


def test_ctrl_c_ends_the_reply_and_not_the_session(typed, monkeypatch):
    stops = iter([True])

    class Interrupted(talk.SimpleQueue):
        def get(self):
            if next(stops, False):
                raise KeyboardInterrupt
            return super().get()

    monkeypatch.setattr(talk, "SimpleQueue", Interrupted)
    printed = typed("reads", "what?", "red?")
    assert printed.count("\n") >= 3


def test_it_needs_none_of_a_server_s_packages():
    """chat is in the package without extras; its engine must be importable there."""
    code = (
        "import builtins, sys\n"
        "plain = builtins.__import__\n"
        "def guarded(name, *rest):\n"
        "    top = name.partition('.')[0]\n"
        "    if top in ('fastapi', 'uvicorn', 'prometheus_client', 'llguidance', 'starlette'):\n"
        "        raise ModuleNotFoundError(name)\n"
        "    return plain(name, *rest)\n"
        "builtins.__import__ = guarded\n"
        "import chiasm.recipes.chat\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
