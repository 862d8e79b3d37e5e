"""The section on what foretells trouble: monitors of every model that was trained with them."""

from __future__ import annotations

from html import escape

from chiasm.eval.report.charts import curve
from chiasm.eval.report.sections import SIDE
from chiasm.eval.report.source import MODELS, Run, number

QUANTITIES = {
    "monitor/largest_logit": "largest attention logit",
    "log_z_squared": "|logZ|",
    "monitor/output_rms": "size of the last block's output",
    "monitor/grad_norm/text": "gradient norm of text",
    "monitor/grad_norm/image": "gradient norm of images",
    "monitor/grad_cosine": "cosine of both gradients",
}
RATIO = "monitor/update_ratio/"


def stability(run: Run) -> str:
    """A curve a quantity, for models whose stages set monitor_every."""
    figures = []
    for model, lines in run.metrics.items():
        if not any(key.startswith("monitor/") for line in lines for key in line):
            continue
        names = dict(QUANTITIES)
        for key in dict.fromkeys(key for line in lines for key in line if key.startswith(RATIO)):
            names[key] = f"update over weight, {key.removeprefix(RATIO)}"
        figures += [_figure(model, key, title, lines) for key, title in names.items()]
    figures = list(filter(None, figures))
    if not figures:
        return ""
    return (
        '<section><h2>What foretells trouble</h2><p class="lede">A logit in the thousands makes '
        "attention blind to all tokens but one; a logZ that drifts wears out bfloat16; an output "
        "that grows to the end foretells a late divergence."
        f'</p><div class="curves">{"".join(figures)}</div></section>'
    )


def _figure(model: str, key: str, title: str, lines: list[dict]) -> str:
    points = []
    for line in lines:
        step, value = number(line.get("step")), number(line.get(key))
        if step is not None and value is not None:
            points.append((step, value**0.5 if key == "log_z_squared" else value))
    if len(points) < 2:
        return ""
    said = f"{title} of {MODELS[model]}, from {points[0][1]:.3g} to {points[-1][1]:.3g}"
    return (
        f'<figure class="card {SIDE[model]}"><figcaption><b>{escape(MODELS[model])} · '
        f'{escape(title)}</b><span class="quiet">ends at {points[-1][1]:.3g}</span></figcaption>'
        f"{curve(points, SIDE[model], said)}</figure>"
    )
