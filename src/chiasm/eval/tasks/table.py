"""Any local table as questions, with one line that says which column is what."""

from __future__ import annotations

from pathlib import Path

from chiasm.core.config import nearest
from chiasm.core.errors import ConfigError, DataError
from chiasm.core.sample import Sample
from chiasm.eval.metrics.choice import option_of
from chiasm.eval.tasks.definition import SHORT, asked, lettered, with_options
from chiasm.eval.tasks.rows import picture, read_rows

COLUMNS = {
    "question": ("question", "query", "text", "prompt", "instruction"),
    "answer": ("answer", "answers", "label", "labels", "reference", "caption", "captions"),
    "image": ("image", "images", "image_path", "img", "imgname", "file_name", "img_filename"),
    "options": ("options", "choices"),
    "category": ("category", "type", "tag"),
    "id": ("id", "index", "question_id", "questionId"),
    "box": ("box", "bbox"),
}
"""What a table is read for, and the columns it is looked for in unless the user names one."""


def read_table(file: Path, columns: str = "") -> list[Sample]:
    """The questions of a .jsonl, .json, .tsv, .csv or .parquet table.

    columns: "question=q, answer=gold, image=file" names the columns that are called otherwise than
    usual (COLUMNS). Pictures are paths beside the file or base64, one or a list; several right
    answers are a list; options are a list, an object, or columns A, B, C, ..., and then the answer
    is a letter or one of their texts. Raises DataError naming file and row, ConfigError for a
    column that is not there.
    """
    rows = list(read_rows(file))
    if not rows or not isinstance(rows[0], dict):
        raise DataError(f"{file}: no rows with named columns")
    chosen = _columns(columns, rows[0], file)
    if "answer" not in chosen:
        raise ConfigError(
            f"{file}: none of its columns ({', '.join(rows[0])}) is known to hold the answer; "
            "say which with --columns answer=NAME"
        )
    return [_sample(row, number, chosen, file) for number, row in enumerate(rows, 1)]


def _columns(text: str, row: dict, file: Path) -> dict[str, str]:
    chosen = {
        what: next(name for name in names if name in row)
        for what, names in COLUMNS.items()
        if any(name in row for name in names)
    }
    for entry in filter(None, (part.strip() for part in text.replace(",", " ").split())):
        what, equals, name = entry.partition("=")
        if not equals or what not in COLUMNS:
            raise ConfigError(
                f"--columns {entry}: write WHAT=COLUMN with one of {', '.join(COLUMNS)}"
            )
        if name not in row:
            raise ConfigError(f"{file}: no column '{name}'{nearest(name, row)}")
        chosen[what] = name
    return chosen


def _sample(row: dict, number: int, chosen: dict[str, str], file: Path) -> Sample:
    where = f"{file.name}:{number}"

    def get(what: str):
        return row.get(chosen[what]) if what in chosen else None

    value = get("answer")
    answers = [str(a) for a in value] if isinstance(value, list) else [str(value)]
    if value in (None, "", []):
        raise DataError(f"{where}: no answer; add one or remove the row")
    options = _options(get("options"), row)
    reference = answers[0]
    if options:
        letter = option_of(reference, options)
        if letter is None:
            raise DataError(f"{where}: the answer '{reference}' is not one of the options")
        reference = letter
    images = get("image")
    images = images if isinstance(images, list) else [images] if images else []
    words = str(get("question") or "Describe the image.")
    return asked(
        number if get("id") is None else get("id"),
        with_options(words, options) if options else words + (SHORT if get("question") else ""),
        [picture(image, file.parent, where) for image in images],
        reference,
        where,
        answers=None if options else answers,
        options=options or None,
        category=get("category"),
        box=get("box"),
    )


def _options(value: object, row: dict) -> dict[str, str]:
    if isinstance(value, dict):
        return {str(letter): str(text) for letter, text in value.items()}
    if isinstance(value, list):
        return lettered(value)
    columns = {key: str(row[key]) for key in "ABCDEFGH" if row.get(key) not in (None, "", "nan")}
    return columns if len(columns) > 1 else {}
