"""The forms of records: for each the keys that it understands and what becomes of them.

Readers ask a record for its keys by these declarations alone, and docs/data.md has its table from
them. A key that nobody asked for is counted by its name (reading.Reading.unused).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from chiasm.data.formats.published import JOINS, PUBLISHED, published_of


@dataclass(frozen=True)
class Key:
    """names: of the column, the first that a record has; becomes: what it is read as."""

    names: tuple[str, ...]
    becomes: str

    @cached_property
    def any_of(self) -> frozenset[str]:
        return frozenset(self.names)


@dataclass(frozen=True)
class Form:
    """title: as told to the user. needs: keys of which a record of this form has one each.
    keys: what else it may have. message: the keys of each of its messages."""

    name: str
    title: str
    needs: tuple[Key, ...]
    keys: tuple[Key, ...] = ()
    message: tuple[Key, ...] = ()

    @property
    def all_keys(self) -> tuple[Key, ...]:
        return (*self.needs, *self.keys, *COMMON)

    def fits(self, keys: frozenset[str]) -> bool:
        """Whether a record that has values of these keys has this form."""
        return not any(keys.isdisjoint(key.names) for key in self.needs)


class Row:
    """A record, and which of its keys have been asked for."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = values
        self.there = frozenset([name for name, value in values.items() if value is not None])
        self.used: set[str] = set()
        self.published = published_of(self.there)

    def find(self, key: Key) -> tuple[str, Any] | None:
        """(name, value) of the first name under which the record has more than an empty text; else
        of the first that it has."""
        if self.there.isdisjoint(key.any_of):  # nearly all keys of nearly all records
            return None
        empty = None
        for name in key.names:
            if name in self.there:
                value = self.values[name]
                if value != "":
                    self.used.add(name)
                    return name, value
                empty = empty or name
        self.used.add(empty)  # type: ignore[arg-type]  # one of them is there
        return empty, ""  # type: ignore[return-value]

    def get(self, key: Key, default: Any = None) -> Any:
        found = self.find(key)
        return default if found is None else found[1]

    def every(self, key: Key) -> Iterator[tuple[str, Any]]:
        """All that the record has of the names."""
        if self.there.isdisjoint(key.any_of):
            return
        for name in key.names:
            if name in self.there:
                self.used.add(name)
                yield name, self.values[name]

    def left(self) -> list[str]:
        """The keys with a value that nobody asked for."""
        if self.there <= self.used:
            return []
        return [
            name
            for name, value in self.values.items()
            if name not in self.used and value is not None and value != "" and value != []
        ]


ID = Key(
    ("id", "question_id", "questionId", "sample_id", "uid", "index", "key", "image_id",
     "imgid", "ref_id"),
    "the sample's id",
)  # fmt: skip
IMAGES = Key(
    ("decoded_image", "images", "image", "jpg", "jpeg", "png", "webp", "img", "file_path",
     "file_name", "file_names",
     "image_path", "image_paths", "img_path", "image_file", "image_list",
     "image_local_name", "image_url",
     "img_filename", "imgname"),
    "images, in order; so is any column whose values are image files, bytes or data URLs",
)  # fmt: skip
VIDEOS = Key(
    ("videos", "video", "video_path"),
    "videos, in order; so is any column whose values are video files",
)
AUDIO = Key(("audios", "audio"), "refused: audio is not read")
SYSTEM = Key(("system", "system_prompt"), "a system message before the others")
OBJECTS = Key(
    ("objects",),
    "names and boxes for `<ref-object>` and `<bbox>` in the text (`bbox_type` real, norm1 or "
    "norm1000, `width`, `height`, `image_id`)",
)
CHOSEN = Key(
    ("chosen", "chosen_response", "preferred_output"),
    "the reply where the conversation ends without one",
)
REJECTED = Key(
    ("rejected", "rejected_response", "rejected_messages", "non_preferred_output"),
    "the worse reply, which stages with `preference` compare with the chosen one",
)
REJECTED_IMAGES = Key(
    ("rejected_images",), "images of the rejected reply; refused where they differ in the prompt"
)
DESIRED = Key(
    ("kto_tag", "label", "desired"),
    "`true` or `false`: whether the reply is a good one (KTO); a bad one is learnt by no other "
    "objective",
)
TOOLS = Key(("tools", "functions"), "refused where it holds tools: tool calls are not read")
INDEPENDENT = Key(("independent",), "the pairs are separate questions about the same images")
META = Key(("meta",), "`meta`, an object")
CATEGORY = Key(("category", "type", "tag"), "`meta.category`, by which scores are reported")
KEPT = Key(
    ("source", "dataset", "data_source", "split", "width", "height", "url", "license", "language",
     "lang", "task", "topic", "difficulty", "image_width", "image_height", "question_type",
     "question_types", "answer_type", "subject", "grade", "skill", "lecture", "rationales",
     "set_name", "dataset_name", "data_split", "cocoid", "sentids", "sent_ids", "fullAnswer"),
    "kept in `meta`",
)  # fmt: skip
COMMON = (ID, IMAGES, VIDEOS, AUDIO, SYSTEM, OBJECTS, CHOSEN, REJECTED, REJECTED_IMAGES, DESIRED,
          TOOLS, META, INDEPENDENT, CATEGORY, KEPT)  # fmt: skip

MESSAGES = Key(("messages",), "the messages")
CONVERSATIONS = Key(("conversations",), "the messages")
CONVERSATION = Key(("conversation",), "the messages, or pairs of `human` and `assistant`")
ROLE = Key(("role", "from", "source"), "who speaks: system, user, assistant and their other names")
CONTENT = Key(
    ("content", "value"),
    "a string with placeholders, or parts: text, image, video, image_url, each with its own image "
    "or the next of the record's",
)
LOSS = Key(("loss",), "`false`: the reply is read, not learnt")
WEIGHT = Key(("weight",), "0: the reply is read, not learnt; 1: as without")
CALLS = Key(("tool_calls", "function_call"), "refused: tool calls are not read")
MESSAGE = (ROLE, CONTENT, LOSS, WEIGHT, CALLS)

TEXTS = Key(("texts", "QA", "qas"), "separate questions: objects with `user` and `assistant`")
PAIR = (
    Key(("user", "human", "input", "q", "question"), "the question"),
    Key(("assistant", "output", "gpt", "a", "answer"), "the answer"),
    Key(("i",), "a line before the question (VideoChat2's instruction)"),
    Key(("system",), "a system message before them"),
    Key(("source",), "kept nowhere"),
)

DOCUMENT = Key(
    ("document",),
    "texts and images in order, learnt unasked: of `texts` and `images` with null at each other's "
    "places (OBELICS, OmniCorpus, MINT-1T), or of `text_list` and `image_info` (MMC4)",
)
ABOUT_DOCUMENT = Key(
    ("metadata", "general_metadata", "similarity_matrix", "could_have_url_duplicate",
     "face_detections"),
    "kept nowhere",
)  # fmt: skip
QUESTION = Key(
    ("question", "query", "problem", "instruction", "prompt", "prefix", "questions"),
    "the user's message; a list of them with as many answers is a conversation",
)
QUESTION_NAMES = frozenset((*QUESTION.names, "messages", "conversations", "conversation"))
INPUT = Key(("input",), "a second line of the question")
HINT = Key(("hint",), "`Hint: ...` before the question")
HISTORY = Key(("history",), "earlier questions and answers, as pairs")
OPTIONS = Key(
    ("options", "choices", "candidates"),
    "lines `A. ...` after the question and `meta.options`: a list, an object or text that spells "
    "one; so are columns A, B, ..., choice_a, ... and option_a, ...",
)
PLACE_OF_ANSWER = Key(
    ("correct_choice_idx", "answer_index", "answer_idx", "correct_index"),
    "of options: the right one's place from 0",
)
ANSWER = Key(
    ("answer", "multiple_choice_answer", "correct_answer", "answers", "direct_answers", "response",
     "output", "completion", "solution", "suffix", "ground_truth", "label", "labels", "reference"),
    "the reply; of options the letter, whether it is given as letter, text or place; several "
    "answers: the most frequent one, all in `meta.answers`",
)  # fmt: skip
REFERENCES = Key(("answers", "direct_answers"), "`meta.answers`: all are right when scored")
BOX = Key(
    ("box", "bbox"),
    "`meta.box` and, where there is no answer, the reply: [left, top, right, bottom], pixels or "
    "fractions ([left, top, width, height] beside COCO's `segmentation`, `iscrowd`, `category_id` "
    "and ScreenSpot's `img_filename`)",
)
EXPRESSION = Key(
    ("expressions", "expression", "sent", "referring_expression"),
    'each a question, "Locate ... in the image."',
)
DETECTIONS = Key(
    ("detections",),
    'the reply to "Detect all objects in the image.": [name, [left, top, right, bottom]] of each; '
    "so are `objects` of names (`category`, `categories`, `label`) and COCO's `bbox` without text",
)
STATEMENT = Key(
    ("statement",),
    'the question "... Is this true of the image?": `sentence`, or `caption` with its `relation`, '
    "beside a `label` of 0 or 1, true or false (NLVR2, VSR)",
)
TRUTH = Key(("label",), "yes or no")
CAPTION = Key(
    ("captions", "caption", "text", "txt", "sentences", "caption_0", "title"),
    'the reply to "Describe the image."; all of a list in `meta.captions` (`text` that asks beside '
    "an answer or a question_id is a question; `prompt` beside an image without a reply a caption)",
)

FORMS: tuple[Form, ...] = (
    Form("messages", "messages", (MESSAGES,), (), MESSAGE),
    Form("conversations", "conversations (LLaVA, ShareGPT)", (CONVERSATIONS,), (), MESSAGE),
    Form("conversation", "conversation", (CONVERSATION,), (), (*MESSAGE, *PAIR)),
    Form(
        "texts",
        "questions and answers about the same images (The Cauldron, VideoChat2)",
        (TEXTS,),
        (),
        PAIR,
    ),
    Form("document", "interleaved document", (DOCUMENT,), (ABOUT_DOCUMENT,)),
    Form(
        "question",
        "question and answer (also query and response, instruction and output, prompt and "
        "completion, prefix and suffix)",
        (QUESTION,),
        (ANSWER, PLACE_OF_ANSWER, REFERENCES, OPTIONS, HINT, INPUT, HISTORY, BOX),
    ),
    Form("expression", "referring expression (RefCOCO)", (EXPRESSION, BOX)),
    Form("detections", "boxes of all objects", (DETECTIONS,)),
    Form("statement", "statement that is true or false", (STATEMENT, TRUTH)),
    Form("preference", "preference without a prompt", (CHOSEN, REJECTED), (), MESSAGE),
    Form("caption", "caption", (CAPTION,)),
)


def form_of(values: Mapping[str, Any]) -> Form | None:
    """The first form whose keys a normal record has."""
    return form_with(frozenset([name for name, value in values.items() if value is not None]))


@lru_cache(4096)
def form_with(keys: frozenset[str]) -> Form | None:
    """The first form whose keys are among these."""
    return next((form for form in FORMS if form.fits(keys)), None)


def markdown() -> str:
    """The table of docs/data.md: each form, its keys, what becomes of them."""
    lines = ["| form | keys | become |", "|---|---|---|"]
    for form in FORMS:
        for place, keys in (("", (*form.needs, *form.keys)), ("of a message: ", form.message)):
            lines += [_line(form.title, place, key) for key in keys]
    lines += [_line("any", "", key) for key in COMMON]
    lines += [
        "",
        "| published data set | known by | file of its image or answers |",
        "|---|---|---|",
    ]
    for one in PUBLISHED:
        names = ", ".join(f"`{name}`" for name in one.names[:3])
        keys = ", ".join(f"`{key}`" for key in one.needs)
        lines.append(f"| {one.title} | {keys} | {names}{', ...' * (len(one.names) > 3)} |")
    lines += [f"| {one.title} | two files | joined by `{one.on}` |" for one in JOINS]
    return "\n".join(lines)


def _line(title: str, place: str, key: Key) -> str:
    names = ", ".join(f"`{name}`" for name in key.names)
    return f"| {title} | {place}{names} | {key.becomes} |"
