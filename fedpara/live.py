"""The table that grows while a federation runs: one line a round, on a terminal, in a pipe and in a log file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .config import Recipe
from .task import Task

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
HOUR = 3600.0  # seconds over which the time left is reckoned: a round may take minutes
SHARES = ("accuracy", "client_accuracy")  # measures that people read in per cent


def bytes_text(count: float) -> str:
    """A byte count in decimal units, three figures: ``1.24 MB``."""
    for size, unit in UNITS:
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} B"


def figure(value: float | None, measure: str = "") -> str:
    """A metric as people read it: a share in per cent, anything else with four digits."""
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" if measure in SHARES else f"{value:.4g}"


def times(run: float, twin: float) -> str:
    return f"{twin / run:.1f}×" if run else "–"


class LiveTable:
    """Prints a line a round, with a progress bar under it on a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress: Progress | None = None
        self._measure = "accuracy"
        self._widths: list[int] = []

    def started(self, recipe: Recipe, task: Task, facts: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
        twin = f"dense twin {bytes_text(facts['dense_twin_model'])} a model"
        sent = f"{facts['shared_parameters']:,} parameters sent, {bytes_text(facts['uplink_payload'])} up; {twin}"
        what = recipe.parametrization + (f" γ={recipe.gamma:g}" if recipe.gamma is not None else "")
        self.console.print(
            f"[bold]{recipe.name}[/bold]: {recipe.clients} clients, {recipe.cohort} a round; {what}; {sent}"
        )
        self.head(task.measure)
        for row in rows:
            self._print(row)
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self.console, transient=True, speed_estimate_period=HOUR)
            self._done = len(rows)
            self._bar = self._progress.add_task("rounds", total=recipe.rounds, completed=self._done)
            self._progress.start()

    def head(self, measure: str) -> None:
        """The columns' names."""
        self._measure = measure
        headers = ["round", measure, "loss", "up", "down", "total", "vs dense", "seconds"]
        self._widths = [max(len(text), width) for text, width in zip(headers, (5, 9, 8, 9, 9, 9, 8, 7), strict=True)]
        self.console.print(self._line(headers), style="dim", highlight=False)

    def progressed(self, share: float) -> None:
        """Move the bar within a round: the time left is known before the first, perhaps long one is over."""
        if self._progress:
            self._progress.update(self._bar, completed=self._done + share)

    def finished_round(self, row: dict[str, Any]) -> None:
        self._print(row)
        for entry in row["dropped"]:
            self.console.print(f"      dropped {entry['client']}: {entry['reason']}", style="yellow", highlight=False)
        if row["replies"] == 0:
            self.console.print("      no usable reply: the model stays as it was", style="red", highlight=False)
        if self._progress:
            self._done += 1
            self._progress.update(self._bar, completed=self._done)

    def finished(self, summary: Mapping[str, Any], folder: Path) -> None:
        self.close()
        self.console.print(summary_table(summary))
        self.console.print(summary_line(summary), highlight=False)
        self.console.print(f"run: {folder}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar off the screen; also when a run ends early."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def _print(self, row: Mapping[str, Any]) -> None:
        measure = figure(row.get(self._measure, row.get(f"client_{self._measure}")), self._measure)
        loss = row.get("loss", row.get("train_loss"))
        cells = [str(row["round"]), measure, figure(loss), *(bytes_text(row[key]) for key in ("up", "down", "total"))]
        cells += [times(row["total"], row["dense_total"]), f"{row['seconds']:.2f}"]
        self.console.print(self._line(cells), highlight=False)

    def _line(self, cells: list[str]) -> str:
        return "  ".join(cell.rjust(width) for cell, width in zip(cells, self._widths, strict=True))


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The run beside its dense fp32 twin: the same clients and rounds, every weight sent as float32."""
    table = Table()
    for name in ("", "payload up + down", "a model up", "vs dense"):
        table.add_column(name, justify="left" if not name else "right")
    total = summary["payload_up"] + summary["payload_down"]
    table.add_row(
        "this run",
        bytes_text(total),
        bytes_text(summary["uplink_payload"]),
        times(total, summary["dense_payload"] or 0),
    )
    dense = summary["dense_payload"]
    table.add_row("dense twin, fp32", bytes_text(dense), bytes_text(summary["dense_twin_model"]), "1×")
    return table


def summary_line(summary: Mapping[str, Any]) -> str:
    """What came out, in a line."""
    measure = summary["measure"]
    line = f"{measure} {figure(summary['value'], measure)}"
    if summary["client_value"] is not None:
        line += f", on clients' held-out data {figure(summary['client_value'], measure)}"
    return f"{line}; {summary['rounds']} rounds in {summary['seconds']:.1f} s"
