"""The few kinds of panel that the dashboards are made of, each with unit, thresholds and a description."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, text, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    GridPos,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

GOOD, WARNING, BAD = "#0072B2", "#E69F00", "#D55E00"
"""Of Okabe and Ito's palette (2008), told apart with every kind of colour vision."""

WIDTH = 24
"""Columns of Grafana's grid."""


class Query(NamedTuple):
    """What to ask and how to call each series of the answer."""

    expr: str
    legend: str


class Levels(NamedTuple):
    """From where on a value is a warning and from where on it is bad; None where it never is."""

    warning: float | None = None
    bad: float | None = None
    is_better_high: bool = False
    """Whether low values are the bad ones: `warning` then says from where on it is no more than that."""


ALWAYS_GOOD = Levels()


def lines(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str,
    width: int = 8,
    levels: Levels = ALWAYS_GOOD,
    stacking: kinds.StackingMode | None = None,
    is_logarithmic: bool = False,
    has_exemplars: bool = False,
    runbook: str | None = None,
) -> Any:
    """Return a panel of lines over time."""
    panel = timeseries.Panel()
    legend = (
        common.VizLegendOptions().display_mode(kinds.LegendDisplayMode.LIST).placement(kinds.LegendPlacement.BOTTOM)
    )
    panel.legend(legend.show_legend(True)).line_width(1).span_nulls(False)
    if stacking is not None:
        panel.stacking(common.StackingConfig().mode(stacking).group("A")).fill_opacity(60)
    if is_logarithmic:
        panel.scale_distribution(common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LOG).log(10))
    else:
        panel.min(0)
    if levels.warning is not None or levels.bad is not None:
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(kinds.GraphTresholdsStyleMode.DASHED))
    for query, name in zip(queries, "ABCDEFGH", strict=False):
        asked = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(name).range()
        panel.with_target(asked.exemplar(True) if has_exemplars else asked)
    return _finish(panel, title, description, unit, width, 8, levels, runbook)


def number(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str,
    width: int = 4,
    levels: Levels = ALWAYS_GOOD,
    decimals: float | None = None,
    runbook: str | None = None,
) -> Any:
    """Return a panel of one number with its course behind it."""
    panel = stat.Panel().color_mode(kinds.BigValueColorMode.VALUE).graph_mode(kinds.BigValueGraphMode.AREA)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if decimals is not None:
        panel.decimals(decimals)
    panel.with_target(prometheus.Dataquery().expr(expr).legend_format("").ref_id("A").range())
    return _finish(panel, title, description, unit, width, 4, levels, runbook)


def heat(title: str, description: str, expr: str, *, unit: str, width: int = 12, runbook: str | None = None) -> Any:
    """Return a histogram's buckets over time."""
    panel = heatmap.Panel().calculate(False).y_axis(heatmap.YAxisConfig().unit(unit))
    colours = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Viridis").steps(64)
    panel.color(colours.scale(HeatmapColorScale.EXPONENTIAL).exponent(0.5))
    asked = prometheus.Dataquery().expr(expr).legend_format("{{le}}").ref_id("A").range()
    panel.with_target(asked.format(PromQueryFormat.HEATMAP))
    return _finish(panel, title, description, unit, width, 8, ALWAYS_GOOD, runbook)


def rows(title: str, description: str, expr: str, *, unit: str = "short", width: int = 12) -> Any:
    """Return the labels of an instant answer as a table."""
    panel = table.Panel()
    panel.with_target(prometheus.Dataquery().expr(expr).ref_id("A").instant().format(PromQueryFormat.TABLE))
    return _finish(panel, title, description, unit, width, 8, ALWAYS_GOOD, None)


def words(title: str, content: str, *, height: int = 20) -> Any:
    """Return a panel of Markdown over the whole width."""
    panel = text.Panel().mode("markdown").content(content)  # type: ignore[arg-type]
    return panel.title(title).grid_pos(GridPos(h=height, w=WIDTH))


def link(title: str, url: str) -> Any:
    """Return a link of a panel."""
    return dashboard.DashboardLink(title).type(DashboardLinkType.LINK).url(url)


def _finish(
    panel: Any, title: str, description: str, unit: str, width: int, height: int, levels: Levels, runbook: str | None
) -> Any:
    panel.title(title).description(description).unit(unit).datasource(SOURCE)
    panel.grid_pos(GridPos(h=height, w=width)).thresholds(_thresholds(levels))
    if runbook is not None:
        panel.links([link("What to do", runbook)])
    return panel


def _thresholds(levels: Levels) -> Any:
    first, second = (BAD, GOOD) if levels.is_better_high else (GOOD, BAD)
    steps = [Threshold(value=None, color=first)]
    if levels.warning is not None:
        steps.append(Threshold(value=levels.warning, color=WARNING))
    if levels.bad is not None:
        steps.append(Threshold(value=levels.bad, color=second))
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
