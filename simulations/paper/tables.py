"""One published table or figure: its runs, and paper / ours / difference line by line."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedpara.app import find_recipe
from fedpara.compare import Entry, Grid, entries_in, read_grid, rows, run_grid, table_of, targets
from fedpara.config import Recipe, load_toml, read_recipe
from fedpara.cost import paper_cost

from .computed import COMPUTED, Found

HERE = Path(__file__).parent
SCALES = ("full", "laptop")
ALIASES = {"table8": "table7"}
# What no result depends on, or what every run differs in.
_ASIDE = frozenset(
    ["name", "description", "task", "seed", "device", "workers", "threads", "data_dir", "evaluate_every"]
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of published.toml: either `computed`, or a choice of methods of some grids."""

    title: str
    computed: str = ""
    methods: Sequence[str] = ()
    shows: Sequence[str] = ()  # quantities, in order
    less: Sequence[tuple[str, str]] = ()  # pairs of methods whose difference in accuracy is shown
    laptop_seeds: Sequence[int] = ()  # where fewer than the grids' have to do
    grids: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by scale
    figures: Found = field(default_factory=dict)

    def paper(self, quantity: str, setting: str, method: str) -> float | None:
        """The published figure, where there is one."""
        return self.figures.get(quantity, {}).get(setting, {}).get(method)


@dataclass(frozen=True)
class Line:
    """One figure: as published, and as found with each seed (None: not reached)."""

    setting: str
    method: str
    quantity: str
    paper: float | None
    ours: Mapping[int | None, float | None]  # by seed; what is computed has none


def source() -> str:
    """Where the published figures are from."""
    return str(load_toml(HERE / "published.toml")["source"])


def tables() -> dict[str, Table]:
    """The published tables and figures, by name."""
    known = {item.name for item in dataclasses.fields(Table)}
    found = {}
    for name, raw in load_toml(HERE / "published.toml").items():
        if isinstance(raw, dict):
            own = {key: value for key, value in raw.items() if key in known}
            figures = {key: value for key, value in raw.items() if isinstance(value, dict)}
            scales = {scale: raw[scale] for scale in SCALES if scale in raw}
            found[name] = Table(**own, grids=scales, figures=figures)
    return found


def grid_file(scale: str, setting: str) -> Path:
    """The grid of a setting at a scale."""
    return HERE / "grids" / scale / f"{setting}.toml"


def read(table: Table, scale: str, setting: str, seeds: Sequence[int] = ()) -> Grid:
    """The part of a setting's grid that a table shows; runs are shared by the tables that take the same methods."""
    grid = read_grid(grid_file(scale, setting))
    methods = {name: own for name, own in grid.methods.items() if name in table.methods}
    fewer = table.laptop_seeds if scale == "laptop" else ()
    return dataclasses.replace(grid, methods=methods, seeds=tuple(seeds) or tuple(fewer) or grid.seeds)


# --------------------------------------------------------------------------------------------------------- the figures


def lines(table: Table, scale: str, output: Path, *, run: bool, seeds: Sequence[int], **overrides: Any) -> list[Line]:
    """Every line of a table. With `run`, what is missing is trained first, and what was cut off goes on."""
    if table.computed:
        return list(_computed(table))
    found: list[Line] = []
    for setting in table.grids[scale]:
        grid, folder = read(table, scale, setting, seeds), output / scale / setting
        entries = run_grid(grid, folder, **overrides) if run else entries_in(grid, folder)
        found += _of_runs(table, setting, grid, entries)
    return found


def _computed(table: Table) -> Iterator[Line]:
    for quantity, settings in COMPUTED[table.computed](table.figures).items():
        for setting, row in settings.items():
            for method, value in row.items():
                yield Line(setting, method, quantity, table.paper(quantity, setting, method), {None: value})


def _of_runs(table: Table, setting: str, grid: Grid, entries: Sequence[Entry]) -> Iterator[Line]:
    """A line for each method and quantity; without a finished run its figures are empty."""
    found = rows(entries, targets(entries, grid)) if entries else []
    facts = [row | _facts(entry) for row, entry in zip(found, entries, strict=True)]
    base = {fact["seed"]: fact for fact in facts if fact["method"] == grid.baseline}
    for quantity in table.shows:
        for method in (name for name in table.methods if name in grid.methods):
            ours = {
                fact["seed"]: _QUANTITIES[quantity](fact, base.get(fact["seed"], {}))
                for fact in facts
                if fact["method"] == method
            }
            yield Line(setting, method, quantity, table.paper(quantity, setting, method), ours)


def _facts(entry: Entry) -> dict[str, Any]:
    """What a run's row does not hold: the paper's bytes to the target, and what a client moves in a round."""
    run = entry.run
    sent = run.summary["shared_parameters"]
    replies = sum(row["replies"] for row in run.rounds)
    return {"sent": sent, "cohort": run.recipe.cohort, "a_round": run.ledger.total() / max(1, replies)}


def _gib(fact: Mapping[str, Any]) -> float | None:
    return paper_cost(4 * fact["sent"], fact["cohort"], fact["rounds"]) if fact.get("rounds") else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


_QUANTITIES: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], float | None]] = {
    "accuracy": lambda fact, base: 100 * fact["last"],
    "parameters": lambda fact, base: fact["sent"],
    "rounds": lambda fact, base: fact["rounds"] if fact["target"] is not None else None,
    "GiB": lambda fact, base: _gib(fact),
    "times fewer": lambda fact, base: _ratio(_gib(base), _gib(fact)),
    "MB a round": lambda fact, base: fact["a_round"] / 1e6,
    "times fewer sent": lambda fact, base: _ratio(base.get("sent"), fact["sent"]),
}


# ---------------------------------------------------------------------------------------------------------- in Markdown


def markdown(table: Table, scale: str, found: Sequence[Line], seeds: Sequence[int] = ()) -> str:
    """The table as it is printed: a head that says what was scaled, a line a figure, differences of pairs."""
    parts = [f"## {table.title}", head(table, scale, seeds), table_of(_LINE, map(_cells, found))]
    pairs = [cells for pair in table.less for cells in _pairs(found, *pair)]
    if pairs:
        parts += ["Differences in accuracy, points, seed by seed:", table_of(_PAIR, pairs)]
    return "\n\n".join(parts)


_LINE = ("setting", "method", "quantity", "paper", "ours", "difference", "seeds")
_PAIR = ("setting", "pair", "paper", "ours", "by seed")


def _cells(line: Line) -> list[str]:
    reached = [value for value in line.ours.values() if value is not None]
    # Figures that not every seed has would be those of the lucky ones: their number is said.
    partly = f" ({len(reached)} of {len(line.ours)} seeds)" if 0 < len(reached) < len(line.ours) else ""
    none = "not reached" if line.ours and line.quantity in ("rounds", "GiB") else "–"
    ours = f"{_mean(reached, line.quantity)}{partly}" if reached else none
    difference = "–"
    if reached and not partly and line.paper is not None:
        difference = _number(statistics.fmean(reached) - line.paper, line.quantity, sign=True)
    paper = "–" if line.paper is None else f"{line.paper:g}"
    seeds = " ".join(str(seed) for seed in line.ours if seed is not None) or "–"
    return [line.setting, line.method, line.quantity, paper, ours, difference, seeds]


def _number(value: float, quantity: str, *, sign: bool = False) -> str:
    if quantity == "parameters":
        return f"{value:+,.0f}" if sign else f"{value:,.0f}"
    places = {"rounds": 1, "million": 3}.get(quantity, 2 if abs(value) >= 0.1 or sign else 4)
    return f"{value:+.{places}f}" if sign else f"{value:.{places}f}"


def _mean(values: Sequence[float], quantity: str) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return _number(statistics.fmean(values), quantity) + (f" ± {_number(spread, quantity)}" if spread else "")


def _pairs(found: Sequence[Line], one: str, other: str) -> Iterator[list[str]]:
    """One method less another, by setting: the mean of the seeds that both have, and each of them."""
    by_place = {(line.setting, line.method): line for line in found if line.quantity == "accuracy"}
    for setting in dict.fromkeys(line.setting for line in found):
        first, second = by_place.get((setting, one)), by_place.get((setting, other))
        if first is None or second is None:
            continue
        paper = "–"
        if first.paper is not None and second.paper is not None:
            paper = f"{first.paper - second.paper:+.2f}"
        each = {
            seed: value - below
            for seed, value in first.ours.items()
            if value is not None and (below := second.ours.get(seed)) is not None
        }
        ours = f"{statistics.fmean(each.values()):+.2f}" if each else "–"
        by_seed = ", ".join(f"{value:+.2f}" for value in each.values()) or "–"
        yield [setting, f"{one} – {other}", paper, ours, by_seed]


def head(table: Table, scale: str, seeds: Sequence[int] = ()) -> str:
    """What of the paper's settings was changed: every difference between the recipes, not a choice of them."""
    if table.computed:
        return f"Computed, nothing is trained. Published: {source()}."
    if scale == "full":
        return f"Full scale: the paper's settings, as far as it prints them. Published: {source()}."
    notes = [f"Laptop scale, smaller than the paper's: compare methods, not figures. Published: {source()}.", ""]
    for setting in table.grids[scale]:
        grid = read(table, scale, setting, seeds)
        own = _recipe(grid)
        full = grid_file("full", setting)
        if full.is_file():
            theirs = _flat(_recipe(read_grid(full)))
            changed = {
                key: f"{value} (full: {theirs.get(key, '–')})"
                for key, value in _flat(own).items()
                if key not in _ASIDE and value != theirs.get(key)
            }
            notes.append(f"- {setting}: {', '.join(f'{key} {value}' for key, value in changed.items())}")
        else:
            scope = f"{own.rounds} rounds, {own.clients} clients, {own.cohort} a round"
            trained = f"{own.training.epochs} local epochs, model {own.options['model']}"
            notes.append(f"- {setting}, which the paper does not have: {scope}, {trained}")
    return "\n".join(notes)


def _recipe(grid: Grid) -> Recipe:
    """The recipe of the grid's first method."""
    return read_recipe(find_recipe(grid.recipe), grid.overrides(next(iter(grid.methods)), grid.seeds[0]))


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Every key of a recipe, those of its tables too."""
    table = dataclasses.asdict(recipe)
    inner = [table.pop(name) for name in ("training", "optimiser", "options")]
    return {key: value for part in (table, *inner) for key, value in part.items()}
