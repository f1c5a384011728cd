"""The table that grows while a federation runs: one line a round, on a terminal, in a pipe and in a log file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .config import Recipe
from .task import Task

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
HOUR = 3600.0  # seconds over which the time left is reckoned: a round may take minutes
COLUMNS = ("loss", "up", "down", "total", "vs dense", "seconds")  # behind round and measure
WIDTHS = (5, 9, 8, 9, 9, 9, 8, 7)
SPARED = ("down", "up", "loss", "seconds", "vs dense", "total")  # in this order on a narrow terminal
STOPPING = "stopping after this round; Ctrl-C again stops at once"
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
    """Prints a line a round, with a progress bar under it on a terminal.

    A terminal that is narrow gets fewer columns, a pipe or a file gets all of them, unfolded and without a bar.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress: Progress | None = None
        self._measure = "accuracy"
        self._shown: list[tuple[int, int]] = []  # the columns of the last header: place and width

    def started(self, recipe: Recipe, task: Task, facts: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
        twin = f"dense twin {bytes_text(facts['dense_twin_model'])} a model"
        sent = f"{facts['shared_parameters']:,} parameters sent, {bytes_text(facts['uplink_payload'])} up; {twin}"
        what = recipe.parametrization + (f" γ={recipe.gamma:g}" if recipe.gamma is not None else "")
        who = f": {recipe.clients} clients, {recipe.cohort} a round; {what}; {sent}"
        self._say(Text.assemble((printable(recipe.name), "bold"), who))
        self.head(task.measure)
        for row in rows:
            self._print(row)
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._bar_column = BarColumn()
            columns = (TextColumn("{task.description}"), self._bar_column, MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self.console, transient=True, speed_estimate_period=HOUR)
            self._done = len(rows)
            self._bar = self._progress.add_task("rounds", total=recipe.rounds, completed=self._done)
            self._fit_bar()
            self._progress.start()

    def head(self, measure: str) -> None:
        """The columns' names."""
        self._measure = measure
        self._shown = self._fitting()
        self._say(Text(self._line(self._headers()), "dim"))

    def progressed(self, share: float) -> None:
        """Move the bar within a round: the time left is known before the first, perhaps long one is over."""
        if self._progress:
            self._fit_bar()
            self._progress.update(self._bar, completed=self._done + share)

    def finished_round(self, row: dict[str, Any]) -> None:
        self._print(row)
        for entry in row["dropped"]:
            reason = f"      dropped {printable(entry['client'])}: {printable(entry['reason'])}"
            self._say(Text(reason, "yellow"))
        if row["replies"] == 0:
            self._say(Text("      no usable reply: the model stays as it was", "red"))
        if self._progress:
            self._fit_bar()
            self._done += 1
            self._progress.update(self._bar, completed=self._done)

    def stopping(self) -> None:
        """Say that this round is the last. Called from a signal's handler: writes past all buffers and locks."""
        here = self._progress is not None  # over the bar, which comes again below
        text = f"\r\x1b[2K{STOPPING}\n" if here else f"{STOPPING}\n"
        with suppress(OSError, ValueError):  # of a file that is none
            os.write(self.console.file.fileno() if here else 2, text.encode())

    def finished(self, summary: Mapping[str, Any], folder: Path) -> None:
        self.close()
        self.console.print(summary_table(summary, self._room()))
        self._say(Text(summary_line(summary)))
        self.console.print(Text(f"run: {folder}"), soft_wrap=True)

    def close(self) -> None:
        """Take the bar off the screen; also when a run ends early."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def _say(self, text: Text) -> None:
        """A line, folded between words on a terminal and nowhere else."""
        self.console.print(text, soft_wrap=not self.console.is_terminal)

    def _print(self, row: Mapping[str, Any]) -> None:
        measure = figure(row.get(self._measure, row.get(f"client_{self._measure}")), self._measure)
        loss = row.get("loss", row.get("train_loss"))
        cells = [str(row["round"]), measure, figure(loss), *(bytes_text(row[key]) for key in ("up", "down", "total"))]
        cells += [times(row["total"], row["dense_total"]), f"{row['seconds']:.2f}"]
        if self._shown != self._fitting():  # the window has another width now
            self.head(self._measure)
        self._say(Text(self._line(cells)))

    def _line(self, cells: Sequence[str]) -> str:
        return "  ".join(cells[place].rjust(width) for place, width in self._shown)

    def _headers(self) -> tuple[str, ...]:
        return ("round", self._measure, *COLUMNS)

    def _room(self) -> int | None:
        """Characters of a line, None where there is no end to it."""
        return self.console.width if self.console.is_terminal else None

    def _fitting(self) -> list[tuple[int, int]]:
        """Place and width of those columns that fit; the least telling ones go first."""
        headers, room = self._headers(), self._room()
        left = {place: max(len(headers[place]), width) for place, width in enumerate(WIDTHS)}
        for name in SPARED:
            if room is None or sum(left.values()) + 2 * (len(left) - 1) <= room:
                break
            del left[headers.index(name)]
        return list(left.items())

    def _fit_bar(self) -> None:
        """The bar takes what the words beside it leave."""
        self._bar_column.bar_width = min(max(self.console.width - 30, 4), 40)


def printable(text: str) -> str:
    """Words from elsewhere on one line of a terminal, which control characters could otherwise take over."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def summary_table(summary: Mapping[str, Any], room: int | None = None) -> Table:
    """The run beside its dense fp32 twin: the same clients and rounds, every weight sent as float32."""
    narrow = room is not None and room < 60
    table = Table(box=SIMPLE_HEAD if narrow else HEAVY_HEAD, padding=(0, 0 if narrow else 1))
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
    table.add_row(
        "dense" if narrow else "dense twin, fp32", bytes_text(dense), bytes_text(summary["dense_twin_model"]), "1×"
    )
    return table


def summary_line(summary: Mapping[str, Any]) -> str:
    """What came out, in a line."""
    measure = summary["measure"]
    line = f"{measure} {figure(summary['value'], measure)}"
    if summary["client_value"] is not None:
        line += f", on clients' held-out data {figure(summary['client_value'], measure)}"
    return f"{line}; {summary['rounds']} rounds in {summary['seconds']:.1f} s"
