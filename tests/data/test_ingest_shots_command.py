"""`chiasm data webpages` in a real Chromium: folders, addresses, bad pages, no browser.

Apart from the tests of single pages, whose browser would still be running: playwright's
synchronous interface allows one at a time.
"""

import json

import pytest

from chiasm import cli
from chiasm.core.errors import ConfigError, DataError
from chiasm.core.progress import silent
from chiasm.data.formats.messages import read_messages
from chiasm.data.ingest.browser import browser, find_browser
from chiasm.data.ingest.shots import ShotOptions, ingest_shots

pytest.importorskip("playwright")
try:
    find_browser()
except ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)

PAGE = "<title>News</title><h1>Harbour news</h1><p>Boats came in early.</p><button>Search</button>"


@pytest.mark.slow
def test_a_folder_with_bad_pages_keeps_the_good_and_names_the_rest(tmp_path, capsys):
    site, out = tmp_path / "site", tmp_path / "out"
    site.mkdir()
    for n in range(3):
        (site / f"p{n}.html").write_text(PAGE.replace("Harbour", f"Harbour{n}"))
    (site / "copy.html").write_bytes((site / "p0.html").read_bytes())
    (site / "blank.html").write_text("")
    (site / "image.html").write_bytes(bytes(range(256)))
    (site / "slow.html").write_text("<p>text<script>while (true) {}</script>")
    cli.main(["data", "webpages", str(site), "-o", str(out), "--wait", "5"])
    said = capsys.readouterr()
    assert "skipped" in said.err
    rows = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    reasons = {row["source"]: row["reason"] for row in rows}
    assert {"p0.html", "blank.html", "slow.html"} <= set(reasons)
    assert "same content as copy.html" in reasons["p0.html"]
    assert "shows no text" in reasons["blank.html"]
    assert "does not load" in reasons["slow.html"]
    train, test = (read_messages(out / f"{half}.jsonl") for half in ("train", "test"))
    pages = [{s.meta["page"] for s in samples} for samples in (train, test)]
    assert not pages[0] & pages[1]
    assert {"copy.html", "p1.html", "p2.html"} <= pages[0] | pages[1]


@pytest.mark.slow
def test_addresses_come_from_a_text_file_and_one_that_does_not_answer_is_skipped(tmp_path):
    (tmp_path / "urls.txt").write_text("http://127.0.0.1:9/\n")
    with pytest.raises(DataError, match=r"none of 1 sources .* does not load"):
        ingest_shots(str(tmp_path / "urls.txt"), tmp_path / "out", ShotOptions(wait=5), silent)
    (tmp_path / "urls.txt").write_text("not an address\n")
    with pytest.raises(DataError, match="holds no http"):
        ingest_shots(str(tmp_path / "urls.txt"), tmp_path / "out", ShotOptions(), silent)


def test_no_browser_is_an_error_that_says_how_to_get_one(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="apt-get install chromium"):
        find_browser(tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt-get install chromium"):
        find_browser()
    (tmp_path / "chromium").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "chromium").chmod(0o755)
    with pytest.raises(ConfigError, match="does not start"), browser(find_browser()):
        pass
