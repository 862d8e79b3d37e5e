"""Web pages in a real Chromium: boxes against the pixels, answers against the HTML."""

import re
from pathlib import Path

import numpy as np
import pytest

from chiasm.core.errors import ConfigError
from chiasm.core.sample import Sample, split_independent
from chiasm.data.boxes import read_box
from chiasm.data.ingest.browser import browser, find_browser
from chiasm.data.ingest.collect import Source
from chiasm.data.ingest.shots import ShotOptions, fold, read_page

pytest.importorskip("playwright")
try:
    CHROMIUM = find_browser()
except ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)

PAGE = """<!doctype html><title>Harbour news today</title>
<style>body{margin:20px;font:16px sans-serif} p{width:300px} .shout{text-transform:uppercase}
.gone{display:none} .faint{opacity:0} .cover{position:absolute;left:400px;top:20px;width:200px;
height:60px;background:#fff;z-index:2} .under{position:absolute;left:410px;top:30px}
.narrow{width:60px;overflow:hidden;white-space:nowrap;text-overflow:ellipsis}
a,button{display:inline-block;border:0;padding:6px 10px}</style>
<h1>Harbour news</h1>
<p>Boats <b>came</b> in<br>early.</p>
<p class=shout>Loud words</p>
<p class=gone>never seen</p><p class=faint>invisible words</p>
<div class=under>covered words</div><div class=cover></div>
<p class=narrow>this text is cut off by its own box</p>
<a href=#1 style="background:#d02020;color:#d02020">Tickets</a>
<button style="background:#2020d0;color:#2020d0">Search</button>
<button style="background:#20a020;color:#20a020">Sign in</button>
<button>Twice</button><button>Twice</button>
<script>document.write('<p>Written by a script</p>')</script>
"""
COLORS = {"Tickets": (0xD0, 0x20, 0x20), "Search": (0x20, 0x20, 0xD0), "Sign in": (32, 160, 32)}


@pytest.fixture(scope="module")
def running():
    with browser(CHROMIUM) as started:
        yield started


def read(running, path: Path, **options) -> list[Sample]:
    source = Source(path.name, "key", path)
    return list(read_page(source, lambda *_: None, running, path.parent, ShotOptions(**options)))


@pytest.fixture(scope="module")
def page(running, tmp_path_factory) -> list[Sample]:
    path = tmp_path_factory.mktemp("page") / "news.html"
    path.write_text(PAGE)
    return read(running, path, width=640, height=480)


def asked(samples: list[Sample]) -> list[tuple[str, str]]:
    parts = [part for sample in samples for part in split_independent(sample)]
    return [(part.turns[0].text, part.turns[1].text) for part in parts]


def test_text_is_what_the_page_shows(page):
    assert [t["text"] for t in page[0].meta["texts"]] == [
        "Harbour news",
        "Boats came in early.",
        "LOUD WORDS",
        "this text is cut off by its own box",
        "Tickets",
        "Search",
        "Sign in",
        "Twice",
        "Twice",
        "Written by a script",
    ]
    assert [t["text"] for t in page[0].meta["texts"] if not t["whole"]] == [
        "this text is cut off by its own box"
    ]
    assert len(page) == 1  # a text that is not whole on the page: no transcription of the page


def test_words_set_apart_by_margins_are_apart_and_a_bold_syllable_is_not(running, tmp_path):
    (tmp_path / "a.html").write_text(
        "<nav><a href=# style='margin-right:20px'>Home</a><a href=#>Plants</a></nav>"
        "<p>un<b>believ</b>able</p>"
    )
    texts = read(running, tmp_path / "a.html")[0].meta["texts"]
    assert [t["text"] for t in texts] == ["Home Plants", "unbelievable"]


def test_boxes_of_controls_are_their_coloured_pixels(page):
    pixels = np.asarray(page[0].images[0].load()).astype(int)
    assert pixels.shape == (480, 640, 3)
    controls = {c["text"]: c for c in page[0].meta["controls"]}
    for name, color in COLORS.items():
        rows, columns = np.nonzero((np.abs(pixels - color).max(-1)) == 0)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.allclose(found, controls[name]["box"], atol=1)
        assert controls[name]["role"] == ("link" if name == "Tickets" else "button")
    where = {q: a for q, a in asked(page) if q.startswith(("Where is the link", "Where is the b"))}
    assert len(where) == 3
    for question, reply in where.items():
        name = re.match(r"Where is the (?:link|button) '(.*)'\?", question)[1]
        assert np.allclose(read_box(reply, (640, 480)), controls[name]["box"], atol=1)


def test_boxes_of_texts_hold_their_ink(page):
    """Nothing dark lies around a text's box, something in it."""
    dark = np.asarray(page[0].images[0].load()).max(-1) < 100
    for text in page[0].meta["texts"][:3]:
        left, top, right, bottom = text["box"]
        assert dark[int(top) : int(bottom) + 1, int(left) : int(right) + 1].any()
        rim = dark[int(top) - 3 : int(bottom) + 4, int(left) - 6 : int(right) + 7].copy()
        rim[3:-3, 6:-6] = False
        assert not rim.any(), text


def test_title_heading_and_names_are_asked(page):
    questions = dict(asked(page))
    assert questions["What is the title of this page?"] == "Harbour news today"
    assert questions["Transcribe the main heading(s)."] == "Harbour news"
    said = [(q, a) for q, a in questions.items() if q.startswith("What does the")]
    assert len(said) == 1
    for question, reply in said:
        box = next(c["box"] for c in page[0].meta["controls"] if c["text"] == reply)
        assert np.allclose(read_box(question, (640, 480)), box, atol=1)
    assert not any("Twice" in question for question in questions)


def test_a_long_page_ends_before_the_paragraph_that_the_window_cuts(running, tmp_path):
    lines = "".join(f"<p style='margin:0;height:50px'>Line number {n}</p>" for n in range(40))
    (tmp_path / "long.html").write_text(f"<body style='margin:0'>{lines}")
    samples = read(running, tmp_path / "long.html", width=400, height=308)
    image = samples[1].images[0].load()
    shown = samples[1].turns[1].text.split("\n")
    assert shown == [f"Line number {n}" for n in range(len(shown))]
    assert len(shown) in (6, 7)
    assert image.size == (400, 300 if len(shown) == 6 else 308)


def test_fold_keeps_whole_texts_only():
    def text(top: float, bottom: float, whole: bool = True) -> dict:
        return {"text": f"{top}", "box": [0, top, 10, bottom], "whole": whole}

    # The window cuts one text at 100; the line above that one, at 80, cuts another.
    above, beside, cut = text(0, 35), text(40, 90), text(80, 120, whole=False)
    assert fold([above, beside, cut], 100) == ([above], 40)
    assert fold([above], 100) == ([above], 100)
    everywhere = text(10, 120, whole=False)
    assert fold([above, everywhere], 100) == ([above, everywhere], 100)


def test_a_local_page_reaches_nothing_outside_its_folder(running, tmp_path):
    (tmp_path / "secret.js").write_text("document.body.append('secret')")
    inner = tmp_path / "site"
    inner.mkdir()
    (inner / "own.js").write_text("document.body.append(' own script')")
    (inner / "a.html").write_text(
        "<body>hello<script src='own.js'></script><script src='../secret.js'></script>"
        "<script src='http://127.0.0.1:9/x.js'></script>"
    )
    (text,) = [t["text"] for t in read(running, inner / "a.html")[0].meta["texts"]]
    assert text == "hello own script"
