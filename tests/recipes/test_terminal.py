"""Images in terminals: what is printed says the image, in each terminal's own words."""

import base64
import io
import re

import numpy as np
import PIL.Image
import pytest

from chiasm.recipes.terminal import CHUNK, COLUMNS, escaped, way_of


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, None),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, None),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "WezTerm", "COLORTERM": "24bit"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({}, None),
    ],
)
def test_how_a_terminal_shows_images(environment, way):
    assert way_of(environment, True) == way
    assert way_of(environment, False) is None


def noise(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def test_kitty_gets_the_file_in_chunks_of_which_the_last_says_so():
    image = noise((64, 48))
    told = re.findall("\x1b_G([^;]*);([^\x1b]*)\x1b\\\\", escaped(image, "kitty"))
    heads, parts = zip(*told, strict=True)
    assert len(parts) > 1
    assert max(map(len, parts)) <= CHUNK
    assert heads[0] == "a=T,f=100,m=1"
    assert [head[-3:] for head in heads[1:]] == ["m=1"] * (len(heads) - 2) + ["m=0"]
    read = PIL.Image.open(io.BytesIO(base64.b64decode("".join(parts))))
    assert read.tobytes() == image.tobytes()
    small = escaped(PIL.Image.new("RGB", (2, 2)), "kitty")
    assert "a=T,f=100,m=0;" in small


def test_iterm_gets_the_file_whole():
    image = noise((20, 10))
    (size, content), *rest = re.findall(
        "File=inline=1;size=(\\d+):([^\x07]*)\x07", escaped(image, "iterm")
    )
    assert not rest
    assert len(base64.b64decode(content)) == int(size)
    assert PIL.Image.open(io.BytesIO(base64.b64decode(content))).tobytes() == image.tobytes()


def test_blocks_are_two_pixels_a_cell():
    image = PIL.Image.new("RGB", (2, 2))
    colours = [(1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12)]
    image.putdata(colours)
    line, end = escaped(image, "blocks").split("\n")
    assert end == ""
    cells = re.findall("38;2;(\\d+);(\\d+);(\\d+);48;2;(\\d+);(\\d+);(\\d+)m▀", line)
    found = [tuple(map(int, cell)) for cell in cells]
    assert found == [(*colours[0], *colours[2]), (*colours[1], *colours[3])]
    assert line.endswith("\x1b[0m")
    wide = escaped(noise((400, 100)), "blocks").split("\n")[:-1]
    assert [line.count("▀") for line in wide] == [COLUMNS] * 5
