"""Methods beside each other: a grid of runs at equal seeds, bytes to a target accuracy, plots and rows for others."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import replace_file
from .config import build, load_toml, normalise
from .cost import LINKS, Link
from .errors import ConfigError
from .live import SHARES, bytes_text, figure, times
from .run import Row, Run

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Aim:
    """The accuracy aimed at: seed by seed the baseline's last one less `within`; or `target`, the same for all."""

    baseline: str | None = None
    within: float = 0.005
    target: float | None = None


@dataclass(frozen=True, kw_only=True)
class Grid(Aim):
    """A TOML file: one recipe, and what each method changes in it."""

    recipe: str
    methods: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    common: Mapping[str, Any] = field(default_factory=dict)
    until_target: bool = False  # end a run at its target; the baseline goes on to its last round

    def overrides(self, method: str, seed: int) -> dict[str, Any]:
        """What this method's recipe differs in; "source" is a note, not a key."""
        own = {key: value for key, value in self.methods[method].items() if key != "source"}
        return {**self.common, **own, "seed": seed}


@dataclass(frozen=True)
class Entry:
    """One run in a comparison."""

    method: str
    seed: int
    run: Run


def read_grid(path: Path) -> Grid:
    """A grid from its file. Raises ConfigError for one that is not."""
    raw = load_toml(path)
    table = normalise(raw)
    methods = {name: own for name, own in raw.get("methods", {}).items() if isinstance(own, Mapping)}
    if not methods or not isinstance(table.get("recipe"), str):
        raise ConfigError(f'{path} is no grid: give recipe = "digits" and a table [methods.NAME] for each method')
    common = table.pop("common", {})
    table.pop("methods")
    seeds = table.pop("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ConfigError(f"seeds = {seeds!r} in {path} must be a list of whole numbers, for example [0, 1, 2]")
    recipe = table.pop("recipe")
    until_target = table.pop("until_target", False)
    if type(until_target) is not bool:
        raise ConfigError(f"until-target = {until_target!r} in {path} must be true or false")
    if len({_file_name(method) for method in methods}) < len(methods):
        raise ConfigError(f"methods of {path} would share a folder: give them names that differ in letters or digits")
    aim = build(Aim, table, "")
    if aim.baseline is not None and aim.baseline not in methods:
        raise ConfigError(f"baseline = '{aim.baseline}' is none of the methods {', '.join(methods)}")
    return Grid(
        recipe=recipe,
        methods={name: normalise(own) for name, own in methods.items()},
        seeds=tuple(seeds),
        common=common,
        until_target=until_target,
        **vars(aim),
    )


def entries_in(grid: Grid, folder: Path) -> list[Entry]:
    """The grid's finished runs in a folder."""
    chosen = [(seed, method, run_folder(folder, method, seed)) for seed in grid.seeds for method in grid.methods]
    return [Entry(method, seed, Run(own)) for seed, method, own in chosen if (own / "summary.json").is_file()]


def run_folder(folder: Path, method: str, seed: int) -> Path:
    """Where a grid's run stands."""
    return folder / f"{_file_name(method)}-seed{seed}"


def run_grid(grid: Grid, folder: Path, **overrides: Any) -> list[Entry]:
    """Every run of the grid: those that stand in the folder are read, unfinished ones resumed, the others run."""
    from . import report, simulate

    entries: list[Entry] = []
    for seed in grid.seeds:
        for method in sorted(grid.methods, key=lambda method: method != grid.baseline):  # it says where others may end
            own = run_folder(folder, method, seed)
            if not (own / "summary.json").is_file():
                print(f"\n{method}, seed {seed}", flush=True)
                started = (own / "recipe.toml").is_file()
                chosen = {**grid.overrides(method, seed), **overrides}
                if grid.until_target and method != grid.baseline:
                    chosen["stop_at"] = grid.target if grid.target is not None else targets(entries, grid)[seed]
                report.write(simulate(grid.recipe, folder=own, resume=started, **chosen))
            entries.append(Entry(method, seed, Run(own)))
    return sorted(entries, key=lambda entry: (entry.seed, list(grid.methods).index(entry.method)))


def entries_of(runs: Iterable[Run]) -> list[Entry]:
    """Finished runs as they are, each under its folder's name without the seed."""
    return [Entry(run.folder.name.removesuffix(f"-seed{run.recipe.seed}"), run.recipe.seed, run) for run in runs]


def targets(entries: Sequence[Entry], grid: Grid | None, target: float | None = None) -> dict[int, float | None]:
    """The accuracy aimed at with each seed."""
    fixed = target if target is not None else grid.target if grid else None
    found: dict[int, float | None] = {entry.seed: fixed for entry in entries}
    if fixed is None and grid is not None and grid.baseline is not None:
        measure = common_measure(entries)
        for entry in entries:
            if entry.method == grid.baseline:
                found[entry.seed] = _last(entry.run, measure) - entry.run.sign * grid.within
    return found


def rows(
    entries: Sequence[Entry], aims: Mapping[int, float | None], link: Link = LINKS["10mbps"]
) -> list[dict[str, Any]]:
    """One row a run: what it reached, and what it had sent when it first reached the target.

    `seconds_on_link` is the time that the slowest client of each round needs to receive and send its payloads, summed
    over the rounds to the target; without one, over all.
    """
    measure = common_measure(entries)
    return [_row(entry, aims[entry.seed], link, measure) for entry in entries]


def common_measure(entries: Sequence[Entry]) -> str:
    """What all runs can be judged by: their own measure, or the clients' where some have no one model for the server.

    Raises:
        ConfigError: there is no such thing.
    """
    own = sorted({entry.run.measure for entry in entries})
    for measure in own:
        if all(any(row.get(measure) is not None for row in entry.run.rounds) for entry in entries):
            return measure
    raise ConfigError(f"these runs have no measure in common: {', '.join(own)}; give each a holdout to be judged on")


def _row(entry: Entry, aim: float | None, link: Link, measure: str) -> dict[str, Any]:
    judged = [row for row in entry.run.rounds if row.get(measure) is not None]
    sign = entry.run.sign
    reached = next((row for row in judged if aim is not None and sign * row[measure] >= sign * aim), None)
    until = reached["round"] if reached else entry.run.rounds[-1]["round"]
    sent = [row for row in entry.run.ledger.to_rows() if row["round"] <= until]
    ways = {way: sum(row["payload"] for row in sent if row["direction"] == way) for way in ("up", "down")}
    whole = aim is None or reached is not None
    return {
        "method": entry.method,
        "seed": entry.seed,
        "measure": measure,
        "last": judged[-1][measure],
        "best": sign * max(sign * row[measure] for row in judged),
        "target": aim,
        "rounds": until if whole else None,
        "up": ways["up"] if whole else None,
        "down": ways["down"] if whole else None,
        "bytes": sum(ways.values()) if whole else None,
        "message_bytes": sum(row["message"] for row in sent) if whole else None,
        "bytes_of_all_rounds": entry.run.ledger.total(),
        "parameters_sent": entry.run.summary.get("shared_parameters"),
        "factor_gap": _mean([row.get("factor_gap") for row in entry.run.rounds]),
        "link": link.name,
        "seconds_on_link": _on_link(sent, link) if whole else None,
    }


def _on_link(sent: Iterable[Row], link: Link) -> float:
    moved: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for row in sent:
        moved[row["round"]][row["client"]][row["direction"] == "down"] += row["payload"]
    return sum(max(link.seconds(up, down) for up, down in clients.values()) for clients in moved.values())


def _last(run: Run, measure: str) -> float:
    return float(next(row[measure] for row in reversed(run.rounds) if row.get(measure) is not None))


# ------------------------------------------------------------------------------------------------------------- shown


def table(found: Sequence[Mapping[str, Any]], baseline: str | None) -> Table:
    """The mean over seeds, with the standard deviation, for the terminal."""
    from rich.table import Table

    shown = Table(box=None, padding=(0, 2, 0, 0))
    for index, name in enumerate(_headers(found)):
        shown.add_column(name, justify="right" if index else "left", no_wrap=bool(index), overflow="fold")
    for cells in _cells(found, baseline):
        shown.add_row(*cells)
    return shown


def _headers(found: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return ("method", str(found[0]["measure"]), *_FIGURES)


_FIGURES = ("reached", "rounds", "parameters", "up", "down", "bytes", "times fewer", "s on link")


def _cells(found: Sequence[Mapping[str, Any]], baseline: str | None) -> list[list[str]]:
    base = _mean([row["bytes"] for row in found if row["method"] == baseline])
    lines = []
    for method in dict.fromkeys(row["method"] for row in found):
        own = [row for row in found if row["method"] == method]
        reached = [row for row in own if row["bytes"] is not None]
        mean = {
            key: _mean([row[key] for row in reached]) for key in ("rounds", "up", "down", "bytes", "seconds_on_link")
        }
        fewer = times(mean["bytes"], base) if base and mean["bytes"] else "–"
        last = [row["last"] for row in own]
        lines.append(
            [
                method,
                f"{figure(statistics.fmean(last), own[0]['measure'])}{_spread(last, own[0]['measure'])}",
                f"{len(reached)}/{len(own)}",
                "–" if mean["rounds"] is None else f"{mean['rounds']:.1f}",
                "–" if own[0]["parameters_sent"] is None else f"{own[0]['parameters_sent']:,}",
                *("–" if mean[key] is None else bytes_text(mean[key] or 0) for key in ("up", "down", "bytes")),
                fewer if len(reached) == len(own) or fewer == "–" else f"({fewer})",
                "–" if mean["seconds_on_link"] is None else f"{mean['seconds_on_link']:.1f}",
            ]
        )
    return lines


def markdown(found: Sequence[Mapping[str, Any]], baseline: str | None) -> str:
    """The same table for a document."""
    return table_of(_headers(found), _cells(found, baseline))


def table_of(headers: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [headers, ["---"] * len(headers), *lines])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _spread(values: Sequence[float], measure: str) -> str:
    if len(values) < 2:
        return ""
    spread = statistics.stdev(values)
    return f" ± {100 * spread:.2f}" if measure in SHARES else f" ± {spread:.2g}"


def write(
    output: Path, entries: Sequence[Entry], found: Sequence[Mapping[str, Any]], baseline: str | None
) -> list[Path]:
    """``runs.jsonl`` (a row a run), ``rounds.jsonl`` (a row a round) and the page ``comparison.html``, into a folder.

    An ``output`` that ends in .html is the page alone.
    """
    from .report.comparison import comparison

    alone = output.suffix == ".html"
    folder = output.parent if alone else output
    folder.mkdir(parents=True, exist_ok=True)
    curves = [
        {"method": entry.method, "seed": entry.seed, **{key: value for key, value in row.items() if key != "cohort"}}
        for entry in entries
        for row in entry.run.rounds
    ]
    files = {} if alone else {"runs.jsonl": found, "rounds.jsonl": curves}
    for name, lines in files.items():
        replace_file(folder / name, "".join(json.dumps(line) + "\n" for line in lines).encode())
    page = comparison(entries, found, _headers(found), _cells(found, baseline), folder)
    shown = output if alone else folder / "comparison.html"
    replace_file(shown, page.encode())
    return [*(folder / name for name in files), shown]


def pareto(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Those for which no other has fewer bytes and more accuracy, or as much of one and better in the other."""
    return {
        name
        for name, (cost, value) in points.items()
        if not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points.values())
    }


def _file_name(method: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_.:" else "-" for letter in method).replace(":", "_")
