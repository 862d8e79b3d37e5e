"""The page of an inspection, in a real Chromium."""

import json

import numpy as np
import PIL.Image
import pytest

from chiasm.core.errors import ConfigError
from chiasm.core.sample import Image, Sample, assistant, user
from chiasm.data.formats.messages import write_messages
from chiasm.data.ingest.browser import browser, find_browser
from chiasm.data.inspect.measure import inspect_data
from chiasm.data.inspect.page import write_page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Eight samples, one image of the test half is a smaller copy of one in training."""
    folder = tmp_path_factory.mktemp("page")
    random = np.random.default_rng(0)
    samples = []
    for n in range(8):
        blocks = random.integers(0, 256, (6, 8, 3), np.uint8)
        image = PIL.Image.fromarray(blocks).resize((160, 120), PIL.Image.Resampling.BICUBIC)
        if n == 7:
            image = samples[2].images[0].source.resize((80, 60))
        turns = (user(Image(image), f"which {n}? " + "w" * 300), assistant(f"answer {n}"))
        samples.append(Sample(turns, f"s{n}"))
    write_messages(samples[:6], folder / "set" / "train.jsonl")
    write_messages(samples[6:], folder / "set" / "test.jsonl")
    found = inspect_data(str(folder / "set"))
    write_page(found, folder / "page.html")
    return found, folder / "page.html"


def test_an_image_in_both_halves_is_told(page):
    found, file = page
    assert [len(group) for group in found.alike] == [2]
    assert found.leaked == 1
    assert json.loads(file.with_suffix(".json").read_text())["test images seen in training"] == 1
    assert "2 in train and test" in file.read_text()


def test_the_page_is_usable_on_a_phone_and_in_the_dark(page):
    pytest.importorskip("playwright")
    try:
        executable = find_browser()
    except ConfigError:
        pytest.skip("no Chromium on this machine")
    with browser(executable) as running:
        for width, scheme in ((390, "light"), (1280, "dark")):
            size = {"width": width, "height": 800}
            tab = running.new_page(viewport=size, color_scheme=scheme)
            errors: list = []
            tab.on("pageerror", lambda error, told=errors: told.append(str(error)))
            tab.on(
                "console", lambda said, told=errors: told.append(said.text)
            )  # a violated content policy is told there
            tab.goto(page[1].as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            cards = tab.locator("article:visible")
            assert cards.count() == 8
            tab.locator("img").evaluate_all(  # raises for one that is broken
                "all => Promise.all(all.map(i => { i.loading = 'eager'; return i.decode(); }))"
            )
            tab.get_by_role("button", name="With a double").click()
            assert cards.count() == 2
            tab.get_by_label("Find words").fill("answer 7")
            assert cards.count() == 1
            assert not tab.get_by_text("None of the samples").is_visible()
            tab.get_by_role("button", name="Odd").click()
            assert cards.count() == 0
            assert tab.get_by_text("None of the samples").is_visible()
            lights = [
                sum(
                    map(
                        int,
                        tab.evaluate(f"getComputedStyle(document.body).{what}")[4:-1].split(","),
                    )
                )
                for what in ("backgroundColor", "color")
            ]
            assert abs(lights[0] - lights[1]) > 500
            assert (lights[0] < lights[1]) == (scheme == "dark")
            assert errors == []
            tab.close()
