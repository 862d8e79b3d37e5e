"""docs/ as a site: every page is in its navigation and overview, and no link leads nowhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def test_reference_of_fields_is_what_the_classes_say(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import make_reference

    assert make_reference.PAGE.read_text() == make_reference.page(), (
        "run: python docs/make_reference.py"
    )
    assert "| `autocast` |" in make_reference.page()


def test_every_page_is_in_the_navigation_and_in_the_overview():
    navigation = (ROOT / "mkdocs.yml").read_text()
    overview = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES:
        assert re.search(rf": {page.name}$", navigation, re.MULTILINE), page.name
        assert page.name == "index.md" or f"({page.name})" in overview, page.name


def test_links_between_files_lead_somewhere():
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
        for target, _ in LINK.findall(page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken
