"""Run folders written line by line: runs of any size and kind in no time, for pages about them."""

import json

import tomli_w

from fedpara.config import read_recipe, to_table
from fedpara.ledger import Ledger
from fedpara.run import Run
from tests.conftest import SMALL

HOSTILE = "<script>alert('ä')</script> & \"co\" " + 30 * "long"


def write_run(folder, *, rounds=4, names=None, seed=0, personal=False, finished=True, shift=0.0, sends=True, **changes):
    """A run of the small recipe whose clients bear these names; some of them are dropped now and then."""
    names = names or [HOSTILE, *(f"client-{place:04d}" for place in range(1, 4))]
    changes = {"clients": len(names), "cohort": min(len(names), 20), "rounds": max(rounds, 1)} | changes
    recipe = read_recipe(SMALL | {"description": HOSTILE}, changes | {"seed": seed})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(tomli_w.dumps(to_table(recipe)))
    ledger, rows, total = Ledger(), [], 0
    for round in range(1, rounds + 1):
        cohort = [names[(round * 7 + place) % len(names)] for place in range(recipe.cohort)]
        for client in cohort:
            for way, purpose, size in (("down", "weights", 9000), ("up", "weights", 5000), ("up", "scales", 40)):
                ledger.record(
                    round=round, client=client, direction=way, purpose=purpose, payload=size * sends, message=size + 300
                )
        rows.append(_row(round, cohort, total, personal=personal, shift=shift, sends=sends))
        total = rows[-1]["total"]
    _write(folder / "rounds.jsonl", rows)
    (folder / "ledger.jsonl").write_bytes(b"")
    ledger.append_to(folder / "ledger.jsonl")
    if personal:
        shares = {name: place / len(names) for place, name in enumerate(names)}
        found = [{"client": name, "examples": 9, "accuracy": share, "loss": 0.5} for name, share in shares.items()]
        _write(folder / "clients.jsonl", found)
    if finished:
        measure = "client_accuracy" if personal else "accuracy"
        summary = {"measure": measure, "higher_is_better": True, "value": rows[-1][measure], "rounds": rounds}
        summary |= {"paper_gib": 0.0125, "uplink_payload": 5040, "dense_twin_model": 90000, "shared_parameters": 5000}
        (folder / "summary.json").write_text(json.dumps(summary))
    return Run(folder)


def _row(round, cohort, total, *, personal, shift, sends):
    reached = 0.9 - 0.7 / round - shift
    judged = {"client_accuracy": reached - 0.05, "client_loss": 2 / round}
    if not personal:
        judged |= {"accuracy": reached, "loss": 1.9 / round}
    dropped = [{"client": cohort[0], "reason": f"no answer within {30 + round}.5 s"}] if round % 2 else []
    dropped += [{"client": cohort[-1], "reason": f"{HOSTILE} says: no"}] if round == 2 else []
    up, down = (5040 * len(cohort) * sends, 9000 * len(cohort) * sends)
    return {
        "round": round,
        **judged,
        "train_loss": 2.1 / round,
        "cohort": cohort,
        "replies": len(cohort) - len(dropped),
        "dropped": dropped,
        "up": up,
        "down": down,
        "total": total + up + down,
        "dense_total": 10 * (total + up + down),
        "factor_gap": 0.03,
        "seconds": 75.5,
        "phases": {"send": 0.5, "train": 60.0, "wait": 10.0, "aggregate": 2.0, "evaluate": 3.0},
        "client_seconds": {"train": 900.0},
    }


def _write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
