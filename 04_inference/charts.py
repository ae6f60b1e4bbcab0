"""The charts of Training and Report, in one style that suits a light and a dark page.

Command: none of its own; the views use it
"""

import altair as alt
import pandas as pd

STAGE_COLORS = {
    "Base model": "#8b9691",
    "Stage 1 (CPT)": "#c48a2c",
    "Stage 2 (SFT), no gate": "#7cbcae",
    "Stage 2 (SFT)": "#1f8a76",
}
PALETTE = ("#1f8a76", "#c48a2c", "#5a7fb0", "#a5627f", "#8b9691", "#7cbcae")
HEIGHT = 150


def _color(runs: list[str], legend: bool = False):
    scale = alt.Scale(domain=runs, range=[PALETTE[i % len(PALETTE)] for i in range(len(runs))])
    shown = alt.Legend(title=None, orient="top", columns=1, labelLimit=330) if legend else None
    return alt.Color("run:N", scale=scale, legend=shown)


def _axes(x: str, zero: bool):
    return (
        alt.X(f"{x}:Q", title=x, axis=alt.Axis(grid=False, tickCount=6)),
        alt.Y("value:Q", title=None, scale=alt.Scale(zero=zero), axis=alt.Axis(tickCount=4)),
    )


def lines(data: pd.DataFrame, name: str, x: str, runs: list[str]):
    """One figure of every run over x (step or minutes)."""
    across, up = _axes(x, zero=True)
    return (
        alt.Chart(data[data.name == name], height=HEIGHT)
        .mark_line(strokeWidth=1.6)
        .encode(
            across, up, _color(runs), tooltip=["run", "step", alt.Tooltip("value", format=".4g")]
        )
    )


def losses(data: pd.DataFrame, x: str, runs: list[str], best: pd.DataFrame):
    """Training loss as a line, validation loss as points, the best step as a dashed rule.

    best: one row a run, {"run", "step", "minutes"}.
    """
    across, up = _axes(x, zero=True)
    color = _color(runs, legend=True)
    shown = ["run", "name", "step", alt.Tooltip("value", format=".4f")]
    train = alt.Chart(data[data.name == "loss"]).mark_line(strokeWidth=1.6, opacity=0.85)
    valid = data[data.name == "validation loss"]
    points = alt.Chart(valid).mark_point(size=70, filled=True, opacity=1)
    dashes = alt.Chart(valid).mark_line(strokeDash=[2, 3], strokeWidth=1)
    rule = alt.Chart(best).mark_rule(strokeDash=[5, 4], strokeWidth=1.2)
    label = alt.Chart(best).mark_text(align="right", dx=-5, dy=8, baseline="top", fontSize=11)
    layers = [
        train.encode(across, up, color, tooltip=shown),
        dashes.encode(across, up, color),
        points.encode(across, up, color, tooltip=shown),
        rule.encode(across, color),
        label.encode(across, y=alt.value(0), color=color, text=alt.value("best")),
    ]
    return alt.layer(*layers).properties(height=2 * HEIGHT)


def dev_scores(data: pd.DataFrame, x: str):
    """Share of the dev questions answered right, a line for every kind and run."""
    chosen = data[data.name.str.startswith("dev ")]
    chosen = chosen.assign(kind=chosen.name.str.removeprefix("dev "))
    across, _ = _axes(x, zero=True)
    up = alt.Y("value:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=_percent())
    color = alt.Color(
        "kind:N",
        sort=list(dict.fromkeys(chosen.kind)),
        scale=alt.Scale(range=list(PALETTE)),
        legend=alt.Legend(title=None, orient="top", columns=3),
    )
    dash = alt.StrokeDash("run:N", legend=None)
    tip = ["run", "kind", "step", alt.Tooltip("value", format=".1%")]
    return (
        alt.Chart(chosen, height=2 * HEIGHT)
        .mark_line(point=alt.OverlayMarkDef(size=45), strokeWidth=1.6)
        .encode(across, up, color, dash, tooltip=tip)
    )


def _percent():
    return alt.Axis(format="%", tickCount=5)


def stage_bars(data: pd.DataFrame, dark: bool):
    """Scores of every kind and stage with their intervals.

    data: kind, n, stage, score, low, high; scores between 0 and 1.
    """
    stages, kinds = list(dict.fromkeys(data.stage)), list(dict.fromkeys(data.kind))
    color = alt.Color(
        "stage:N",
        scale=alt.Scale(domain=stages, range=[STAGE_COLORS[s] for s in stages]),
        legend=alt.Legend(title=None, orient="top", columns=2, labelLimit=260),
    )
    across = alt.X("score:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=_percent())
    up = alt.Y("kind:N", title=None, sort=kinds)
    beside = alt.YOffset("stage:N", sort=stages, scale=alt.Scale(paddingInner=0.15))
    tip = ["kind", "n", "stage"] + [alt.Tooltip(c, format=".1%") for c in ("score", "low", "high")]
    base = alt.Chart(data)
    # With the theme's narrower bars, Vega-Lite would move the bars against the intervals.
    bars = base.mark_bar(height=alt.RelativeBandSize(1)).encode(
        across, up, beside, color, tooltip=tip
    )
    # A thin bar lies in the middle of its place; a rule would lie at its edge.
    line = alt.value("#dfe5e1" if dark else "#39423e")
    reach = base.mark_bar(size=1.5).encode(
        alt.X("low:Q"), up, beside, x2="high:Q", color=line, tooltip=tip
    )
    return alt.layer(bars, reach).properties(height=20 * len(stages) * len(kinds))
