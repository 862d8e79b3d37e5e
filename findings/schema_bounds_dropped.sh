#!/usr/bin/env bash
# outlines-core 0.2.14 (the grammars of outlines; an engine of vLLM's structured output): build_regex_from_schema drops
# minimum, maximum, exclusive bounds and multipleOf without a word, and takes `pattern` for the whole
# string, where JSON Schema lets it match anywhere. A grounding reply by a pydantic model whose box
# holds four numbers from 0 to 1 may say 1.5 or -3; coordinates in thousandths may say 9999; a caption
# with the pattern "cat" can only be "cat". llguidance 1.9.1 keeps all of them (but no exponents within
# bounds). Whoever changes the engine changes what replies are possible. Exits nonzero when this
# changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet outlines-core==0.2.14 llguidance==1.9.1 pydantic==2.14.3
cat > "$folder/probe.py" <<'P'
import json
import re
from importlib.metadata import version
from typing import Annotated

from llguidance import LLMatcher, LLTokenizer
from outlines_core.json_schema import build_regex_from_schema
from pydantic import BaseModel, Field, ValidationError

Share = Annotated[float, Field(ge=0, le=1)]


class Shares(BaseModel):
    box: tuple[Share, Share, Share, Share]


class Thousandths(BaseModel):
    x: Annotated[int, Field(ge=0, le=1000)]


class Grid(BaseModel):
    x: Annotated[int, Field(multiple_of=5)]


class Caption(BaseModel):
    text: Annotated[str, Field(pattern="cat")]


TOKENS = LLTokenizer("byte")


def by_outlines(schema, reply):
    return re.fullmatch(build_regex_from_schema(schema), reply) is not None


def by_llguidance(schema, reply):
    grammar = LLMatcher.grammar_from_json_schema(schema)
    assert not LLMatcher.validate_grammar(grammar, TOKENS)
    matcher, ids = LLMatcher(TOKENS, grammar), TOKENS.tokenize_str(reply)
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


def by_pydantic(model, reply):
    try:
        return bool(model.model_validate_json(reply))
    except ValidationError:
        return False


print({name: version(name) for name in ("outlines-core", "llguidance", "pydantic")})
wrong = {"outlines": 0, "llguidance": 0}
for model, reply in (
    (Shares, '{"box":[0.1,0.2,0.5,1.0]}'),
    (Shares, '{"box":[0.1,0.2,0.5,1.5]}'),
    (Shares, '{"box":[-3.0,0.2,0.5,1.0]}'),
    (Thousandths, '{"x":1000}'),
    (Thousandths, '{"x":9999}'),
    (Grid, '{"x":10}'),
    (Grid, '{"x":7}'),
    (Caption, '{"text":"cat"}'),
    (Caption, '{"text":"a cat on a mat"}'),
    (Caption, '{"text":"a dog"}'),
):
    schema = json.dumps(model.model_json_schema())
    valid = by_pydantic(model, reply)
    said = {"outlines": by_outlines(schema, reply), "llguidance": bool(by_llguidance(schema, reply))}
    print(f"{reply:32} pydantic {valid!s:5} outlines {said['outlines']!s:5} llguidance {said['llguidance']}")
    for name in wrong:
        wrong[name] += said[name] != valid
assert wrong == {"outlines": 5, "llguidance": 0}, wrong
P
"$folder/venv/bin/python" "$folder/probe.py"
