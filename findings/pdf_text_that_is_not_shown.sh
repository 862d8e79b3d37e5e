#!/usr/bin/env bash
# pypdfium2 5.15.2 (PDFium): the text page holds text that the rendered page does not show: that of a layer
# (optional content group) which is switched off, and text outside the clip path. The
# bitmap is right in both cases. Pairs of page image and text layer, as they are made for OCR and
# document training, teach a model to write words that nobody can see: layers of other languages,
# answers of exam sheets, crop remains of drawings. PDFium has no flag for it; compare with the pixels. Exits nonzero when
# this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pypdfium2==5.15.2 pillow numpy
cat > "$folder/probe.py" <<'P'
from importlib.metadata import version

import numpy as np
import pypdfium2

LAYER = "/OCProperties << /OCGs [6 0 R] /D << /{} [6 0 R] /Order [6 0 R] >> >>"
SEEN = b"BT /F1 20 Tf 20 150 Td (Visible) Tj ET "
OTHER = b"BT /F1 20 Tf 20 50 Td (Other) Tj ET "


def document(content, catalog=""):
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {catalog} >>".encode(),
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R /Resources "
        b"<< /Font << /F1 5 0 R >> /Properties << /Layer 6 0 R >> >> >>",
        f"<< /Length {len(content)} >>\nstream\n".encode() + content + b"\nendstream",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Type /OCG /Name (Layer) >>",
    ]
    file, places = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(file))
        file += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{len(file)}\n%%EOF"
    return file + end.encode()


def look(name, file):
    """Whether the lower half of the page has ink, and whether the text page has its word."""
    page = pypdfium2.PdfDocument(file)[0]
    pixels = np.asarray(page.render(scale=1).to_pil().convert("L"))
    text = page.get_textpage().get_text_bounded()
    found = bool((pixels[100:] < 128).any()), "Other" in text
    print(f"{name:22} ink {found[0]!s:5} in the text page {found[1]}")
    return found


print("pypdfium2", version("pypdfium2"), pypdfium2.PDFIUM_INFO)
layer = SEEN + b"/OC /Layer BDC " + OTHER + b"EMC"
assert look("layer switched on", document(layer, LAYER.format("ON"))) == (True, True)
assert look("layer switched off", document(layer, LAYER.format("OFF"))) == (False, True)
assert look("within the clip path", document(SEEN + b"q 0 0 300 100 re W n " + OTHER + b"Q")) == (True, True)
assert look("outside the clip path", document(SEEN + b"q 0 0 5 5 re W n " + OTHER + b"Q")) == (False, True)
P
"$folder/venv/bin/python" "$folder/probe.py"
