#!/usr/bin/env bash
# torch 2.13.0, CPU: compiled flex_attention runs for one sequence length, and for a second one does
# not build when mask_mod reads three tensors: the C++ names a variable that it does not declare
# (cur_kvSplitSize1), as the name of a symbol is replaced inside a longer one. With two or five
# tensors, and in eager mode, the same lengths work. Needs a C++ compiler. Exits nonzero when this
# changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cat > "$folder/probe.py" <<'P'
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention


def attend(compiled, tokens, captured):
    columns = [torch.arange(tokens, dtype=torch.int32)[None] for _ in range(captured)]

    def causal(b, _h, q, k):
        allowed = k <= q
        for column in columns:
            allowed = allowed & (column[b, k] <= column[b, q])
        return allowed

    mask = create_block_mask(causal, 1, None, tokens, tokens, device="cpu")
    q = torch.randn(1, 4, tokens, 32)
    with torch.no_grad():
        compiled(q, q, q, block_mask=mask)


def outcome(captured, tokens, compiled):
    try:
        attend(compiled, tokens, captured)
    except Exception as error:
        return next((line for line in str(error).splitlines() if "error:" in line), repr(error))
    return "ok"


print("torch", torch.__version__)
found = {}
for captured in (2, 3, 5):
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, fullgraph=True)
    for tokens in (256, 320):
        found[captured, tokens] = outcome(captured, tokens, compiled)
        print(captured, "tensors,", tokens, "tokens:", found[captured, tokens])
failing = {key for key, said in found.items() if said != "ok"}
assert failing == {(3, 320)}, failing
assert "was not declared" in found[3, 320]
P
"$folder/venv/bin/python" "$folder/probe.py"
