"""PDF files made here with known text at known places: answers, boxes, halves, bad files."""

import io
import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from chiasm import cli
from chiasm.core.errors import ConfigError, DataError
from chiasm.core.progress import silent
from chiasm.core.sample import Sample, split_independent
from chiasm.data.boxes import read_box
from chiasm.data.formats.messages import read_messages
from chiasm.data.ingest.collect import Source
from chiasm.data.ingest.layout import Line, order_pairs, paragraphs
from chiasm.data.ingest.pdf import PdfOptions, ingest_pdf, read_pdf

pytest.importorskip("pypdfium2")
matplotlib = pytest.importorskip("matplotlib")

COLORS = ("#d02020", "#20a020", "#2020d0", "#c08010", "#9020b0")
RGB = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in COLORS]


def write_pdf(path: Path, pages: list[list[str]], rotate: bool = False) -> None:
    """A PDF whose n-th line of a page is in the n-th colour, 36 points below the one above."""
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"pdf.fonttype": 42}), PdfPages(path) as file:
        for lines in pages:
            figure = Figure(figsize=(6, 4))
            for n, line in enumerate(lines):
                figure.text(0.1, 0.85 - n * 0.125, line, fontsize=14, color=COLORS[n % 5], va="top")
            file.savefig(figure)
    if rotate:
        import pypdfium2

        document = pypdfium2.PdfDocument(path.read_bytes())
        document[0].set_rotation(90)
        document.save(path)
        document.close()


LINES = ["Annual report", "Rain fell on the hills", "and rivers rose slowly", "Page the last one"]


def read(path: Path, **options) -> list[Sample]:
    return list(read_pdf(Source(path.name, "key", path), lambda *_: None, PdfOptions(**options)))


def asked(samples: list[Sample]) -> list[tuple[Sample, str, str]]:
    parts = [part for sample in samples for part in split_independent(sample)]
    return [(part, part.turns[0].text, part.turns[1].text) for part in parts]


@pytest.fixture
def page(tmp_path) -> list[Sample]:
    write_pdf(tmp_path / "a.pdf", [LINES])
    return read(tmp_path / "a.pdf", side=600)


def test_a_page_gives_its_text_its_regions_and_a_degraded_copy(page):
    text, regions, scanned = page
    assert text.turns[1].text == "\n".join(LINES)
    assert text.images[0].load().size == (600, 400)
    assert [s.independent for s in page] == [False, True, True]
    assert scanned.turns[1].text == "\n".join(LINES)
    assert scanned.meta["degraded"]
    assert scanned.images[0].load().size == (600, 400)
    assert scanned.images[0].load().tobytes() != text.images[0].load().tobytes()
    assert not any("Where" in question or "[" in question for _, question, _ in asked([scanned]))
    assert regions.images[0].digest() == text.images[0].digest()


@pytest.mark.parametrize("rotate", [False, True])
def test_boxes_hold_the_ink_of_their_line_and_of_no_other(rotate, tmp_path):
    write_pdf(tmp_path / "a.pdf", [LINES], rotate)
    page = read(tmp_path / "a.pdf", side=600)
    found = 0
    for part, question, reply in asked(page):
        if not question.startswith("Where is the text"):
            continue
        image = part.images[0].load()
        assert image.size == ((400, 600) if rotate else (600, 400))
        line = LINES.index(re.fullmatch(r"Where is the text '(.*)'\? .*", question)[1])
        pixels = np.asarray(image).astype(int)
        left, top, right, bottom = read_box(reply, image.size)
        for n in range(len(LINES)):
            rows, columns = np.nonzero((np.abs(pixels - RGB[n]).max(-1)) < 40)
            inside = (
                (rows >= top - 2) & (rows < bottom + 2)
                & (columns >= left - 2) & (columns < right + 2)
            )  # fmt: skip
            assert inside.all() if n == line else not inside.any()
        found += 1
    assert found == 3


def one_page(path: Path, content: str, rotate: int = 0, boxes: str = "", catalog: str = "") -> Path:
    """A PDF of one page of 400 x 400 points with two fonts, written object by object."""
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {catalog} >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 400] {boxes} /Rotate {rotate} "
        "/Contents 4 0 R /Resources << /Font << /F1 5 0 R /F2 6 0 R >> "
        "/Properties << /Layer 7 0 R >> >> >>",
        f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Times-Bold >>",
        "<< /Type /OCG /Name (Layer) >>",
    ]
    body, places = "%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{each}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    body += f"xref\n0 8\n0000000000 65535 f \n{table}trailer << /Size 8 /Root 1 0 R >>\n"
    path.write_text(f"{body}startxref\n{body.index('xref')}\n%%EOF\n", "latin-1")
    return path


def test_text_outside_the_crop_box_is_not_there(tmp_path):
    lines = ((350, "above the crop"), (150, "inside it"), (102, "on the edge"), (86, "cut away"))
    shown = " ".join(f"1 0 0 1 40 {y} Tm ({text}) Tj" for y, text in lines)
    content = f"BT /F1 14 Tf {shown} 1 0 0 1 350 160 Tm (right of the crop) Tj ET"
    page = one_page(tmp_path / "a.pdf", content, boxes="/CropBox [20 100 300 200]")
    text, *_ = read(page, side=280)
    assert text.images[0].load().size == (280, 100)
    assert text.turns[1].text == "inside it\non the edge"
    for line in text.meta["lines"]:
        x0, y0, x1, y1 = line["box"]
        assert 0 <= x0 < x1 <= 280
        assert 0 <= y0 < y1 <= 100


HIDINGS = {
    "layer switched off": "/OC /Layer BDC {} EMC",
    "outside the clip path": "q 0 0 5 5 re W n {} Q",
    "without ink": "3 Tr {} 0 Tr",
    "white on white": "1 1 1 rg {} 0 0 0 rg",
}


@pytest.mark.parametrize("hiding", HIDINGS.values(), ids=list(HIDINGS))
def test_text_that_is_not_shown_is_not_there(hiding, tmp_path):
    def line(y, text):
        return f"BT /F1 14 Tf 40 {y} Td ({text}) Tj ET"

    off = "/OCProperties << /OCGs [7 0 R] /D << /OFF [7 0 R] >> >>"
    content = f"{line(350, 'above')} {hiding.format(line(250, 'hidden'))} {line(150, 'below')}"
    text, *_ = read(one_page(tmp_path / "a.pdf", content, catalog=off), side=400)
    assert text.turns[1].text == "above\nbelow"
    shown = content.replace("/OC /Layer", "/OC /Other").replace("0 0 5 5", "0 0 400 400")
    shown = shown.replace("3 Tr", "0 Tr").replace("1 1 1 rg", "1 0 0 rg")
    text, *_ = read(one_page(tmp_path / "b.pdf", shown), side=400)
    assert text.turns[1].text == "above\nhidden\nbelow"


def test_a_page_whose_text_is_all_cut_away_is_named(tmp_path):
    page = one_page(
        tmp_path / "a.pdf", "BT /F1 14 Tf 40 350 Td (above) Tj ET", boxes="/CropBox [0 0 300 200]"
    )
    told = {}
    list(read_pdf(Source("a", "key", page), told.__setitem__, PdfOptions()))
    assert "no text layer that can be seen" in told["a page 1"]


MATRICES = {0: "1 0 0 1 50 350", 90: "0 1 -1 0 50 50", 180: "-1 0 0 -1 350 50",
            270: "0 -1 1 0 350 350"}  # fmt: skip
"""Of text that is upright, 50 from the left and the top, where a page is shown turned."""


@pytest.mark.parametrize("rotate", MATRICES)
def test_lines_of_a_turned_page_are_those_that_are_shown(rotate, tmp_path):
    content = (
        f"BT {MATRICES[rotate]} Tm /F1 14 Tf 20 TL (first line of ) Tj /F2 14 Tf (bold) Tj T* "
        "/F1 14 Tf (second) Tj T* (third line) Tj ET"
    )
    pages = [
        read(one_page(tmp_path / f"{name}.pdf", text, turn), side=400)[0]
        for name, text, turn in (
            ("turned", content, rotate),
            ("upright", content.replace(MATRICES[rotate], MATRICES[0]), 0),
        )
    ]
    turned, upright = ([line.values() for line in page.meta["lines"]] for page in pages)
    assert [text for text, _ in turned] == ["first line of bold", "second", "third line"]
    for (text, box), (expected, where) in zip(turned, upright, strict=True):
        assert text == expected
        assert box == pytest.approx(where, abs=1.5)


@pytest.mark.parametrize("rotate", [90, 270])
def test_lines_that_are_shown_sideways_stay_apart(rotate, tmp_path):
    content = (
        f"BT {MATRICES[0]} Tm /F1 14 Tf 20 TL (first line of ) Tj /F2 14 Tf (bold) Tj T* "
        "/F1 14 Tf (second) Tj ET"
    )
    page, *_ = read(one_page(tmp_path / "a.pdf", content, rotate), side=400)
    assert page.turns[1].text == "first line of bold\nsecond"
    for line in page.meta["lines"]:
        x0, y0, x1, y1 = line["box"]
        assert y1 - y0 > 2 * (x1 - x0)


def test_regions_say_what_stands_in_them(page):
    """The text of a region is that of the recorded lines whose middles lie in the box."""
    seen = 0
    for part, question, reply in asked(page):
        if question.startswith("Transcribe the text at"):
            left, top, right, bottom = read_box(question, part.images[0].load().size)
            inside = [
                line["text"]
                for line in part.meta["lines"]
                if left < (line["box"][0] + line["box"][2]) / 2 < right
                and top < (line["box"][1] + line["box"][3]) / 2 < bottom
            ]
            assert reply == "\n".join(inside)
            seen += 1
    assert seen >= 2


def test_order_questions_agree_with_the_page(page):
    orders = [(q, a) for _, q, a in asked(page) if "read first" in q or "comes after" in q]
    assert len(orders) >= 6
    for question, reply in orders:
        if "read first" in question:
            pair = re.fullmatch(r"Which is read first, '(.*)' or '(.*)'\?", question).groups()
            assert reply == min(pair, key=LINES.index)
        else:
            before = re.fullmatch(r"Which line comes after '(.*)'\?", question)[1]
            assert LINES.index(reply) == LINES.index(before) + 1


def test_order_is_not_asked_where_file_and_page_disagree():
    from random import Random

    down = [Line("first line", (0, 0, 50, 10)), Line("second line", (0, 12, 50, 22))]
    assert len(order_pairs(down, Random(0))) == 2
    assert order_pairs(down[::-1], Random(0)) == []
    beside = [down[0], Line("other column", (60, 12, 90, 22))]
    assert order_pairs(beside, Random(0)) == []


def test_paragraphs_are_lines_close_together_in_one_column():
    lines = [
        Line("a b", (0, 0, 50, 10)),
        Line("c d", (0, 12, 40, 22)),
        Line("far", (0, 60, 40, 70)),
        Line("beside", (80, 72, 120, 82)),
        Line("big", (80, 84, 160, 114)),
    ]
    assert paragraphs(lines) == [Line("a b\nc d", (0, 0, 50, 22)), *lines[2:]]


def bad_folder(folder: Path) -> None:
    for n in range(6):
        write_pdf(folder / f"good{n}.pdf", [[f"Document {n}", "has some text"]] * (1 + (n == 3)))
    (folder / "copy.pdf").write_bytes((folder / "good0.pdf").read_bytes())
    (folder / "empty.pdf").write_bytes(b"")
    (folder / "html.pdf").write_text("<html>not found</html>")
    whole = (folder / "good1.pdf").read_bytes()
    (folder / "half.pdf").write_bytes(whole[: len(whole) // 3])
    scanned = PIL.Image.new("RGB", (200, 100), "white")
    scanned.save(folder / "scan.pdf")
    (folder / "dangling.pdf").symlink_to(folder / "nowhere")
    (folder / "notes.txt").write_text("not a PDF")
    (folder / "folder.pdf").mkdir()


def test_a_folder_with_bad_files_keeps_the_good_and_names_the_rest(tmp_path, capsys):
    bad_folder(tmp_path / "in")
    out = tmp_path / "out"
    cli.main(["data", "pdf", str(tmp_path / "in"), "-o", str(out), "--side", "300"])
    said = capsys.readouterr()
    assert "train:" in said.out
    assert "6 skipped" in said.err
    skipped = [json.loads(x) for x in (out / "skipped.jsonl").read_text().splitlines()]
    reasons = {row["source"]: row["reason"] for row in skipped}
    assert set(reasons) == {"good0.pdf", "empty.pdf", "html.pdf", "half.pdf", "scan.pdf page 1",
                            "dangling.pdf"}  # fmt: skip
    assert "same content as copy.pdf" in reasons["good0.pdf"]
    assert "no text layer" in reasons["scan.pdf page 1"]
    assert "cannot be opened" in reasons["dangling.pdf"]
    halves = {half: read_messages(out / f"{half}.jsonl") for half in ("train", "test")}
    assert len(halves["train"]) + len(halves["test"]) == 3 * 7
    files = {half: {s.meta["file"] for s in samples} for half, samples in halves.items()}
    assert not files["train"] & files["test"]
    assert files["test"]
    ids = [s.id for samples in halves.values() for s in samples]
    assert len(set(ids)) == len(ids)
    for sample in halves["train"]:
        sample.images[0].load()


def test_the_same_seed_gives_the_same_files(tmp_path):
    for n in range(3):
        write_pdf(tmp_path / "in" / f"{n}.pdf", [[*LINES, f"number {n} of three"]])
    made = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ingest_pdf(tmp_path / "in", tmp_path / name, PdfOptions(side=200, seed=seed), silent)
        files = (p for p in (tmp_path / name).rglob("*") if p.is_file())
        made.append({p.relative_to(tmp_path / name).as_posix(): p.read_bytes() for p in files})
    assert made[0] == made[1] != made[2]


def test_pages_beyond_the_limit_are_reported(tmp_path):
    write_pdf(tmp_path / "long.pdf", [[f"Page number {n}"] for n in range(4)])
    skipped = {}
    source = Source("long.pdf", "key", tmp_path / "long.pdf")
    options = PdfOptions(side=200, pages=3, scans=0)
    samples = list(read_pdf(source, skipped.__setitem__, options))
    assert {s.meta["page"] for s in samples} == {1, 2, 3}
    assert skipped == {"long.pdf after page 3": "1 pages more than --pages"}


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        ingest_pdf(tmp_path / "nowhere", tmp_path / "out", PdfOptions(), silent)
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"holds no \.pdf file"):
        ingest_pdf(tmp_path / "in", tmp_path / "out", PdfOptions(), silent)
    (tmp_path / "in" / "a.pdf").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"none of 1 sources gave a sample; a\.pdf: not a readable"):
        ingest_pdf(tmp_path / "in", tmp_path / "out", PdfOptions(), silent)
    assert not (tmp_path / "out" / "train.jsonl").exists()
    with pytest.raises(ConfigError, match="--side 10"):
        ingest_pdf(tmp_path / "in", tmp_path / "out", PdfOptions(side=10), silent)


def test_a_scanned_copy_is_a_jpeg_file(page):
    with PIL.Image.open(io.BytesIO(page[2].images[0].source)) as image:
        assert image.format == "JPEG"
