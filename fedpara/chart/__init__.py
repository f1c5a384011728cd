"""Charts as SVG: no import to wait for, the page's own colours by day and by night, text that can be selected."""

from .bars import bars, dots, heat_map, histogram, panel
from .lines import Chart, Points, figure, line_chart, scatter

__all__ = ["Chart", "Points", "bars", "dots", "figure", "heat_map", "histogram", "line_chart", "panel", "scatter"]
