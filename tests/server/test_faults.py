"""Replies that must not touch the model: each is counted, named and dropped, and the round goes on with the rest."""

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from safetensors.torch import load_file

from fedpara.codec import codec
from fedpara.config import read_recipe
from fedpara.errors import ConfigError, FederationError
from fedpara.task import build_model, build_task
from fedpara.wire import ARRAYS, METRICS, PACKED, SETTINGS
from server import cohort
from server.federation import Federation
from server.grid import Update
from simulations.local import LocalGrid, local_grid
from tests.conftest import SMALL, Silent

RECIPE = read_recipe(SMALL, {"rounds": 2, "cohort": 4, "deadline": 2.0, "uplink": "fp32"})


class Tampering(LocalGrid):
    """Delivers like LocalGrid, but changes what chosen clients reply."""

    def __init__(self, inner, change, victims):
        self.__dict__.update(inner.__dict__)
        self._change = change
        self._victims = victims

    def pull_messages(self, message_ids):
        replies = []
        for reply in super().pull_messages(message_ids):
            name = next(n for n, node in self.clients.items() if node == reply.metadata.src_node_id)
            changed = self._change(reply) if name in self._victims(list(self.clients)) else reply
            replies += changed if isinstance(changed, list) else [changed]
        return replies


def packed(reply, blob, stype=PACKED):
    reply.content[ARRAYS] = ArrayRecord({"model": Array("uint8", (len(blob),), stype, blob)})
    return reply


def blob_of(reply):
    return next(iter(reply.content.array_records[ARRAYS].values())).data


def with_state(reply, change):
    """The reply with its decoded model changed and encoded again: well-formed, but not to be trusted."""
    like = build_model(RECIPE, build_task(RECIPE)).state_dict()
    state = codec("fp32").decode(blob_of(reply), like)
    return packed(reply, codec("fp32").encode(change(state)))


def one_nan(state):
    next(iter(state.values())).view(-1)[0] = float("nan")
    return state


def one_infinite(state):
    next(iter(state.values())).view(-1)[-1] = float("inf")
    return state


def larger(state):
    name = next(iter(state))
    return state | {name: torch.zeros(3, *state[name].shape)}


def without_metrics(reply):
    del reply.content[METRICS]
    return reply


def examples(count):
    def change(reply):
        reply.content[METRICS] = MetricRecord({"num-examples": count})
        return reply

    return change


def metrics(**more):
    def change(reply):
        reply.content[METRICS] = MetricRecord({"num-examples": 5, **more})
        return reply

    return change


def other_code(reply):
    reply.content[SETTINGS] = ConfigRecord({"code": "00000000"})
    return reply


def failed(reply):
    reason = "Traceback (most recent call last):\n  File 'x', line 1\nOutOfMemoryError: 3 GiB asked"
    return Message(Error(2, reason), metadata=reply.metadata)


def two_arrays(reply):
    array = next(iter(reply.content.array_records[ARRAYS].values()))
    reply.content[ARRAYS] = ArrayRecord({"a": array, "b": array})
    return reply


def emptied(reply):
    reply.content = RecordDict()
    return reply


FAULTS = {
    "truncated": (lambda r: packed(r, blob_of(r)[:-7]), "byte"),
    "garbage": (lambda r: packed(r, b"\x00" * 500), ""),
    "empty": (lambda r: packed(r, b""), ""),
    "a flipped bit": (lambda r: packed(r, blob_of(r)[:100] + bytes([blob_of(r)[100] ^ 4]) + blob_of(r)[101:]), ""),
    "not a number": (lambda r: with_state(r, one_nan), "finite"),
    "infinite": (lambda r: with_state(r, one_infinite), "finite"),
    "another shape": (lambda r: with_state(r, larger), ""),
    "unpacked": (lambda r: packed(r, blob_of(r), "numpy.ndarray"), "no packed model"),
    "two arrays": (two_arrays, "no packed model"),
    "no content": (emptied, ""),
    "no metrics": (without_metrics, "weight"),
    "no examples": (examples(0), "weight"),
    "negative examples": (examples(-5), "num-examples"),
    "examples are a fraction": (examples(2.5), "num-examples"),
    "a list of examples": (examples([1, 2]), "no count"),
    "a list as a metric": (metrics(loss=[1.0, 2.0]), "not single numbers"),
    "nothing evaluated": (metrics(**{"eval-num-examples": float("nan")}), "no count"),
    "another version": (other_code, "other code"),
    "an error": (failed, "OutOfMemoryError: 3 GiB asked"),
    "silence": (lambda r: [], "no answer within 2 s"),
}


def federate(folder, change, victims, recipe=RECIPE):
    with local_grid(recipe, folder / "clients") as grid:
        return Federation(Tampering(grid, change, victims), recipe, folder, Silent()).run()


def changed(**changes):
    return read_recipe(SMALL, {"rounds": 2, "cohort": 4, "deadline": 2.0, "uplink": "fp32"} | changes)


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_bad_reply_is_named_and_dropped_and_the_round_goes_on(fault, tmp_path):
    change, words = FAULTS[fault]
    run = federate(tmp_path / "run", change, lambda clients: clients[3:])  # the last: who is silent delays nobody
    for row in run.rounds:
        assert [entry["client"] for entry in row["dropped"]] == ["client-0003"]
        assert words in row["dropped"][0]["reason"]
        assert "\n" not in row["dropped"][0]["reason"]
        assert row["replies"] == 3
    state = load_file(run.folder / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())
    # What the others sent is all there is in the model: the same run without the bad client, bit for bit.
    other = federate(tmp_path / "other", failed, lambda clients: clients[3:])
    assert all(
        torch.equal(tensor, state[name]) for name, tensor in load_file(other.folder / "model.safetensors").items()
    )


def test_a_round_with_no_good_reply_keeps_the_model_and_says_so(tmp_path):
    run = federate(tmp_path / "run", lambda r: with_state(r, one_nan), lambda clients: clients)
    assert [row["replies"] for row in run.rounds] == [0, 0]
    assert run.rounds[0]["loss"] == run.rounds[1]["loss"]
    # The model is still the seed's, so it costs 16 bytes to send again.
    assert run.rounds[1]["down"] == 16 * 4
    first = build_model(RECIPE, build_task(RECIPE), parametrization="none").state_dict().keys()
    assert set(load_file(run.folder / "model.safetensors")) == set(first)


def test_what_was_dropped_still_cost_bytes(tmp_path):
    run = federate(tmp_path / "run", lambda r: packed(r, b"x" * 1000), lambda clients: clients[:1])
    ledger = run.ledger.by("round", "client", "direction")
    assert ledger[1, "client-0000", "up"] == 1000
    assert ledger[1, "client-0001", "up"] > 1000


def test_a_reply_given_twice_counts_once(tmp_path):
    run = federate(tmp_path / "run", lambda r: [r, r], lambda clients: clients[:1])
    whole = federate(tmp_path / "whole", lambda r: r, lambda clients: [])
    assert run.rounds[0]["replies"] == 4
    assert run.rounds[0]["dropped"] == [
        {"client": "client-0000", "reason": "a reply to no question of this run, or a second one"}
    ]
    state = load_file(run.folder / "model.safetensors")
    expected = load_file(whole.folder / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def louder(factor):
    """The model changed this many times as far, from what the first broadcast was."""

    def change(reply):
        first = build_model(RECIPE, build_task(RECIPE)).state_dict()
        return with_state(reply, lambda state: {k: first[k] + factor * (v - first[k]) for k, v in state.items()})

    return change


def test_an_update_far_beyond_the_others_is_refused_and_one_within_is_not(tmp_path):
    run = federate(tmp_path / "far", louder(30), lambda clients: clients[:1], changed(rounds=1))
    assert [entry["client"] for entry in run.rounds[0]["dropped"]] == ["client-0000"]
    assert "times the cohort's median norm" in run.rounds[0]["dropped"][0]["reason"]
    assert run.rounds[0]["replies"] == 3
    for factor, bound in ((3, 10), (30, 0), (30, 100)):
        recipe = changed(rounds=1, norm_bound=bound)
        run = federate(tmp_path / f"{factor}-{bound}", louder(factor), lambda clients: clients[:1], recipe)
        assert run.rounds[0]["dropped"] == []


def test_the_bound_is_the_whole_cohorts_whatever_came_first():
    norms = {"a": 100.0, "b": 90.0, "c": 1.0, "d": 1.5, "e": 1.2}
    held = cohort.Cohort(norms, bound=2.0)
    for name, norm in norms.items():
        held.add(Update(name, {"w": torch.full((3,), norm)}, 1, {}), norm)
        assert list(held.ready()) == []
    settled = list(held.settle())
    assert [update.client for update, _ in settled] == sorted(norms)
    assert [bool(refused) for _, refused in settled] == [True, True, False, False, False]
    assert "66.7 times" in settled[0][1]
    assert list(held.settle()) == []


def test_updates_are_added_in_the_order_of_names_as_soon_as_nobody_before_is_waited_for():
    held, given = cohort.Cohort("abcde", bound=0.0), []
    for name in "cbeda":
        held.forget("a") if name == "a" else held.add(Update(name, {"w": torch.zeros(3)}, 1, {}), 0.0)
        given.append("".join(update.client for update in held.ready()))
    assert given == ["", "", "", "", "bcde"]
    held = cohort.Cohort("abc", bound=0.0)
    for name, expected in (("a", "a"), ("c", "")):
        held.add(Update(name, {"w": torch.zeros(3)}, 1, {}), 0.0)
        assert "".join(update.client for update in held.ready()) == expected
    assert [(update.client, refused) for update, refused in held.settle()] == [("c", "")]  # b never came
    assert len(held) == 2


def test_updates_that_wait_on_disk_are_the_same(tmp_path, monkeypatch):
    whole = federate(tmp_path / "memory", lambda r: r, lambda clients: [])
    monkeypatch.setattr(cohort, "ROOM", 0)
    other = federate(tmp_path / "disk", lambda r: r, lambda clients: [])
    state = load_file(whole.folder / "model.safetensors")
    assert all(
        torch.equal(tensor, state[name]) for name, tensor in load_file(other.folder / "model.safetensors").items()
    )


def test_over_selection_takes_the_first_and_counts_the_others_when_they_come(tmp_path):
    recipe = changed(cohort=2, over_selection=2, rounds=3)
    run = federate(tmp_path / "run", lambda r: r, lambda clients: [], recipe)
    for row in run.rounds:
        assert (len(row["cohort"]), row["replies"], len(row["dropped"])) == (4, 2, 2)
        assert all("not waited for: 2 others were faster" in entry["reason"] for entry in row["dropped"])
    # In one process a late client trains when it is asked for again: the first of the two, in the next round.
    rows = [row for row in run.ledger.to_rows() if row["direction"] == "up" and row["purpose"] == "weights"]
    assert len(rows) > 2 * 3
    assert run.ledger.total("up") == sum(row["up"] for row in run.rounds)


def test_a_round_with_too_few_replies_changes_nothing_and_three_of_them_end_the_run(tmp_path):
    recipe = changed(rounds=6, min_replies=4)
    with pytest.raises(FederationError, match=r"3 rounds in a row with fewer than 4 usable replies.*then resume"):
        federate(tmp_path / "run", failed, lambda clients: clients[:1], recipe)
    with local_grid(recipe, tmp_path / "run" / "clients") as grid:
        run = Federation(grid, recipe, tmp_path / "run", Silent(), resume=True).run()
    assert [row["replies"] for row in run.rounds] == [3, 3, 3, 4, 4, 4]
    assert run.rounds[0]["loss"] == run.rounds[2]["loss"] != run.rounds[3]["loss"]


def test_more_replies_than_a_cohort_has_cannot_be_asked_for():
    with pytest.raises(ConfigError, match="min_replies = 5 is larger than cohort = 4"):
        changed(min_replies=5)


@pytest.mark.parametrize("uplink", ["fp32", "int8"])
def test_what_answered_another_round_does_not_count_again(uplink, tmp_path):
    seen = {}

    def first_again(reply):
        blob = seen.setdefault("blob", blob_of(reply))
        return packed(reply, blob)

    recipe = read_recipe(SMALL, {"rounds": 3, "cohort": 4, "deadline": 2.0, "uplink": uplink})
    run = federate(tmp_path / "run", first_again, lambda names: names[:1], recipe)
    assert [row["replies"] for row in run.rounds] == [4, 3, 3]
    for row in run.rounds[1:]:
        (dropped,) = row["dropped"]
        assert "another broadcast" in dropped["reason"] or "different reference" in dropped["reason"]
