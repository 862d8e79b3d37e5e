"""Which option of a multiple-choice question a reply takes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache

from chiasm.eval.metrics.thinking import without_thinking
from chiasm.eval.metrics.vqa import fold

# Words that a sentence about the *letter* A (or I) goes on with; before any other word "A" is the
# article and "I" the pronoun.
_GOES_ON = (
    r"(?:because|since|as|for|not|but|and|or|nor|is|isn't|was|wasn't|are|aren't|would|wouldn't|"
    r"can|can't|cannot|could|does|doesn't|looks|seems|which|due|best|fits|matches|over|rather|"
    r"instead|option|choice)\b"
)
# Between what announces a letter and the letter: markdown, quotes, brackets, LaTeX, "option".
_MARKS = r"[\s*_\"'`“”‘«$\[({<【（「『:]{0,4}"
_OPENING = (
    rf"{_MARKS}(?:(?:\\(?:text|textbf|mathrm|mathbf|boxed|rm|bf)\b\s?\{{?"
    rf"|(?:the\s)?(?:option|choice|letter|answer)\b|选项|選項){_MARKS}){{0,3}}"
)
_NOUN = (
    r"(?:\b(?:answer|choice|option|solution|response|selection|pick|guess|conclusion"
    r"|respuesta|resposta|risposta|réponse|reponse|antwort|antwoord|svar|odpowiedź|cevap|jawaban"
    r"|đáp án|ответ)s?\b"
    r"(?:\s+(?:here|above|corr?ec?t\w*|giusta|exact\w*))?"
    r"|正确答案|正確答案|正确选项|正確選項|答案|答え|正解|解答|回答|정답|답)"
)
_VERB = (
    r"(?:\s*['’]s\b|\s+(?:is|was|are|be|will\s+be|would\s+be|should\s+be|must\s+be|has\s+to\s+be"
    r"|can\s+only\s+be|can\s+be|seems\s+to\s+be|appears\s+to\s+be|remains|becomes"
    r"|es|est|é|è|ist|är|er|jest|adalah|là|is\s+duidelijk)(?=\W)"
    r"|\s*(?:应该是|應該是|应为|應為|应选|應選|就是|是|为|為|选|選|は|が|은|는|이|—|это)"
    r"|[\s*_\"'`“”)\]]*[:：=→>]+|\s+[-–—]+(?=\s)|[\s*_#]*\n+(?=[\s*_(\[]*\S[\s*_.)\]]*(?:\n|$)))"
)
_ADVERB = (
    r"(?:\s*[,:]?\s*(?:most\s+likely|very\s+likely|likely|probably|clearly|definitely|certainly"
    r"|therefore|thus|hence|obviously|simply|indeed|actually|then|still|given\s+by|shown\s+in"
    r"|labell?ed|number|:|：),?){0,3}"
)
_PICKS = (
    r"(?:\b(?:choose|chose|choosing|pick|picked|select|selected|selecting|go(?:ing)?\s+with|went\s+with"
    r"|opt\s+for|settle\s+on|vote\s+for)\b|(?<!不)(?:应选|應選|故选|故選|选择|選擇|选|選)(?!项|項))"
)
_RIGHT = (
    r"\s+(?:is|would\s+be|must\s+be|should\s+be|looks|seems(?:\s+to\s+be)?)\s+"
    r"(?:(?:clearly|definitely|therefore|thus|indeed|probably|likely|also)\s+)?"
    r"(?:the\s+|my\s+)?(?:(?:most|only|single|more)\s+)?"
    r"(?:correct|right|best|true|accurate|appropriate|suitable|plausible|likely|answer|one\b)"
)
_RIGHT_CJK = r"\s*(?:选项|項)?\s*(?:是|为|為)?\s*(?:正确|正確|对的|對的)"
# What takes a letter out of the running, before it and behind it.
_NO = r"(?:\bnot|n['’]t|\bnever|\bneither|\bnor|\bcannot)"
_FILLER = (
    r"(?:\s+(?:be|is|the|either|both|any|correct|right|answer|options?|choices?|choose|pick|select"
    r"|go\s+with|think|believe|say|that|it['’]?s?|of)\b){0,6}"
)
_REJECTING = (
    rf"(?:{_NO}{_FILLER}|\b(?:rather\s+than|instead\s+of|except(?:\s+for)?|unlike|exclud(?:e[sd]?|ing)"
    r"|eliminat(?:e[sd]?|ing)|rul(?:e[sd]?|ing)\s+out|discard(?:s|ed|ing)?|reject(?:s|ed|ing)?)\b"
    r"(?:\s+(?:the|both|options?|choices?)){0,3}"
    r"|而不是|并不是|並不是|不是|而非|并非|並非|不选|不選|排除)"
)
_WRONG = (
    r"(?:(?:clearly|obviously|definitely|therefore|also|thus|simply|just|both|all|an?|the)\s+){0,3}"
    r"(?:wrong|incorrect|false|invalid|untrue|ruled\s+out|eliminated|excluded|out\b|impossible"
    r"|implausible|unlikely|irrelevant|no\b)"
)
_REJECTED = (
    r"\s*(?:\s(?:is|was|would|can|could|does|did|should|must)(?:\s*n['’]t\b|\s+not\b)|\scannot\b"
    r"|\scan['’]t\b|\sfails?\b"
    rf"|\s(?:is|was|seems|looks|must\s+be|would\s+be|can\s+be|has\s+to\s+be)\s+{_WRONG}"
    r"|\s*(?:选项|選項)?\s*(?:是|都是|都)?\s*(?:错误|錯誤|错的|錯的|不正确|不正確|不对|不對))"
)
_ALL_REJECTED = (
    r"\s+(?:(?:are|were|do|can|could|would)(?:\s*n['’]t\b|\s+not\b)"
    rf"|(?:are|were|seem|look)\s+{_WRONG})"
)
# In the same clause before a declaration: it is then supposed, asked about or denied, not made.
_VOID = re.compile(
    rf"(?:\b(?:if|whether|suppose|supposing|assum(?:e|ing)|unless|why)\b|{_NO}\b|如果|假设|若)"
    r"[^.,;:!?\n。，；]*$",
    re.I,
)
_SO = re.compile(r"\b(?:so|thus|therefore|hence|but)\b", re.I)
_TAGGED = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.I | re.S)
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_SEAMS = re.compile(rf"(?<=[{_CJK}])(?=[A-Za-z0-9])|(?<=[A-Za-z0-9])(?=[{_CJK}])")
_NAMED = re.compile(r"(?:option|choice|letter)\s+$", re.I)
# Latin letters alone: other scripts have no such article.
_WORD_BEHIND = re.compile(rf"[^\S\n]+(?!{_GOES_ON})[a-zà-öø-ÿ]", re.I)
_LOWER_BEHIND = re.compile(rf"[^\S\n]+(?!{_GOES_ON})[a-zà-öø-ÿ]")
_LONG_RUNS = re.compile(r"([\s\W_])\1{3,}")  # of blanks or rules, so that patterns stay linear
_GONE = "\0"


def parse_choice(reply: str, options: Mapping[str, str]) -> str | None:
    """The letter a reply chooses, or None: a parse failure, never a guess.

    options: letter -> text. What stands in thinking tags does not count, nor a letter that is
    rejected ("not C", "C is wrong"). In this order: the reply is an option's text; the last
    declaration ("the answer is B", "Answer: B", a box, `<answer>`, "B is correct", in other scripts
    too); the letter it begins with ("B", "b", "(B) because"); the last letter in brackets; the last
    that stands alone, where "A dog" and "I think" are words; exactly one option's text that occurs
    as whole words, a longer one hiding a shorter one inside it; the last lower-case letter that
    stands alone and is no article. A declaration of several letters chooses none.
    """
    said = unicodedata.normalize("NFKC", without_thinking(reply)).strip()
    if tagged := [part for part in _TAGGED.findall(said) if part.strip()]:
        return parse_choice(tagged[-1], options)
    texts = {fold(text): letter for letter, text in options.items() if fold(text)}
    if fold(said) in texts and len(texts) == len(options):
        return texts[fold(said)]
    letters = _letters(tuple(options))
    said = _LONG_RUNS.sub(r"\1\1\1", _SEAMS.sub(" ", said))
    said = letters.without_rejected(letters.without_listing(said))
    if declared := letters.declared(said):
        return declared[-1] if len(declared) == 1 else None
    return (
        letters.leading(said)
        or letters.bracketed(said)
        or letters.alone(said, lower=False)
        or _by_text(fold(said.replace(_GONE, " ")), texts)
        or letters.alone(said, lower=True)
    )


def option_of(reference: str, options: Mapping[str, str]) -> str | None:
    """The letter that a reference names, spelled as references are ("B", "(b)", "B.", an option's
    text, "Answer: B"), or None."""
    if reference in options:
        return reference
    same = [letter for letter, text in options.items() if text == reference]
    return same[0] if same else parse_choice(reference, options)


class _Letters:
    """The patterns that find letters of one set of options in a reply."""

    def __init__(self, keys: tuple[str, ...]):
        # Case tells two options apart only where both are there.
        self.keys = {key.casefold(): key for key in reversed(keys)} | {key: key for key in keys}
        self.order = keys
        any_key = "|".join(map(re.escape, sorted(self.keys, key=len, reverse=True)))
        one = rf"(?<![\w'’\\-])(?:{any_key})(?![\w'’]|-\w|\.\w)"
        joint = r"\s*(?:,|、|/|&|\bor\b|\band\b|和|或)(?:\s*(?:or|and)\b)?"
        more = rf"(?:{joint}{_OPENING}{one}[)\]*_\"']*)"
        self.alone_pattern = re.compile(one, re.I)
        self.listed = re.compile(rf"^[ \t>*_(\[-]*({any_key})[).:\]*_]+[ \t]+\S", re.M)
        closing = r"[\s.)\]*_\"'`”’}】）」』$]*"
        following = rf"(?P<more>{more}{{1,8}}(?=\s*(?:[.,;:!?)\]*\n。，]|$)))?"
        self.declaring = [
            re.compile(pattern + following, re.I)
            for pattern in (
                rf"{_NOUN}(?:\s+(?:to|for)\s+[^.:\n]{{0,40}}?)?{_VERB}{_ADVERB}\s*{_OPENING}(?P<letter>{one})(?!{closing}\?)",
                rf"\b(?:answer|answers)\s+{_OPENING}(?P<letter>{one})(?!{closing}\?)",
                rf"{_PICKS}\s*{_OPENING}(?P<letter>{one})",
                rf"\\boxed\s*\{{{_OPENING}(?P<letter>{one})",
                rf"####\s*{_OPENING}(?P<letter>{one})",
                rf"(?P<letter>{one})[)\]*_.\"']*(?:{_RIGHT}|{_RIGHT_CJK})",
            )
        ]
        end = r"[)\]*_.\"':]*(?:\s+(?:option|choice)s?)?"
        self.rejecting = [
            re.compile(pattern, re.I)
            for pattern in (
                rf"{_REJECTING}\s*{_OPENING}(?P<list>{one}{more}{{0,8}})",
                rf"(?P<list>{one}){end}{_REJECTED}",
                rf"(?P<list>{one}{more}{{0,8}}){end}{_ALL_REJECTED}",
            )
        ]
        self.begins = re.compile(
            rf"^[\W_]*({one})(?:$|[.):,;*\]\n_]|\s*$|\s+[-–—]+\s|\s+{_GOES_ON})", re.I
        )
        self.brackets = re.compile(rf"[(\[]\s*[*_]*({any_key})[*_]*\s*[)\]]", re.I)

    def key(self, letter: str) -> str | None:
        return self.keys.get(letter) or self.keys.get(letter.casefold())

    def without_listing(self, said: str) -> str:
        """The reply less the letters of options that it repeats line by line in their order."""
        found = list(self.listed.finditer(said))
        named = [self.key(match[1]) for match in found]
        if len(named) < 2 or named != list(self.order[: len(named)]):
            return said
        return _blank(said, (match.span(1) for match in found))

    def without_rejected(self, said: str) -> str:
        """The reply less the letters of which it says that they are not it."""
        for pattern in self.rejecting:
            spans = [
                letter.span()
                for match in pattern.finditer(said)
                for letter in self.alone_pattern.finditer(said, *match.span("list"))
                if not self.is_word(said, letter.span())
            ]
            said = _blank(said, spans)
        return said

    def declared(self, said: str) -> list[str]:
        """The letters of the last declaration: usually one, none where nothing is declared."""
        found: list[tuple[int, list[str]]] = []
        for number, pattern in enumerate(self.declaring):
            for match in pattern.finditer(said):
                span = match.span("letter")
                due = number < len(self.declaring) - 1  # else the letter comes before "is correct"
                if self.is_word(said, span, due, ":" in match[0]):
                    continue
                if self._is_void(said, match.start()):
                    continue
                letters = [said[span[0] : span[1]]]
                if match["more"]:
                    letters += self.alone_pattern.findall(match["more"])
                named = dict.fromkeys(key for one in letters if (key := self.key(one)))
                found.append((span[0], list(named)))
        return max(found, key=lambda pair: pair[0])[1] if found else []

    def _is_void(self, said: str, start: int) -> bool:
        before = _VOID.search(said, max(0, start - 80), start)
        return before is not None and not _SO.search(before[0])

    def leading(self, said: str) -> str | None:
        found = self.begins.match(said)
        return self.key(found[1]) if found else None

    def bracketed(self, said: str) -> str | None:
        found = [key for letter in self.brackets.findall(said) if (key := self.key(letter))]
        return found[-1] if found else None

    def alone(self, said: str, lower: bool) -> str | None:
        """The last letter that stands alone, of those spelled as the options are or of others."""
        found = [
            match[0]
            for match in self.alone_pattern.finditer(said)
            if (match[0] not in self.order) == lower and not self.is_word(said, match.span())
        ]
        return self.key(found[-1]) if found else None

    def is_word(
        self, said: str, span: tuple[int, int], due: bool = False, colon: bool = False
    ) -> bool:
        """Whether a letter is the article "a" or the pronoun "I". due: it stands where a letter is
        announced ("the answer is A dog"), so a capital A is none, unless a sentence begins there
        (colon: "Answer: A dog")."""
        letter = said[span[0] : span[1]]
        if letter not in ("a", "A", "i", "I") or (due and not colon and letter in "AI"):
            return False
        if _NAMED.search(said, max(0, span[0] - 10), span[0]):
            return False
        behind = _LOWER_BEHIND if colon and letter in "AI" else _WORD_BEHIND
        return behind.match(said, span[1]) is not None


@lru_cache(maxsize=64)
def _letters(keys: tuple[str, ...]) -> _Letters:
    return _Letters(keys)


def _blank(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text with a mark that is no word in place of each span."""
    characters = list(text)
    for start, end in spans:
        characters[start:end] = _GONE * (end - start)
    return "".join(characters)


def _by_text(said: str, texts: Mapping[str, str]) -> str | None:
    if not texts:
        return None
    longest_first = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    found = set(re.findall(rf"(?<!\S)(?:{longest_first})(?!\S)", said))
    return texts[found.pop()] if len(found) == 1 else None
