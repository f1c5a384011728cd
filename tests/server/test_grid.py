"""The Grid that encodes, decodes and counts: transparent to any Flower strategy."""

import dataclasses

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import fedpara as fp
from fedpara.codec import codec
from fedpara.config import read_recipe
from fedpara.ledger import Ledger
from fedpara.sharing import shared_state
from fedpara.task import build_model, build_task
from fedpara.wire import ARRAYS, CONFIG, ROUND
from server.grid import CodedGrid
from server.messages import Sizes
from simulations.local import local_grid
from simulations.workers import identify
from tests.conftest import SMALL, Silent
from tests.server.test_faults import Tampering, with_state

RECIPE = read_recipe(SMALL, {"rounds": 2, "cohort": 4})


def initial_state(recipe):
    return {name: tensor.clone() for name, tensor in shared_state(build_model(recipe, build_task(recipe))).items()}


@pytest.fixture
def grid(tmp_path):
    with local_grid(RECIPE, tmp_path) as inner:
        yield CodedGrid(inner, RECIPE, initial_state(RECIPE), Ledger())


def flower(strategy, grid, rounds=2):
    arrays = ArrayRecord(initial_state(RECIPE))
    return strategy.start(grid, arrays, num_rounds=rounds, timeout=60)


def settings():
    return {"fraction_train": 1.0, "fraction_evaluate": 0.0, "min_train_nodes": 4, "min_available_nodes": 4}


def test_flowers_fedavg_runs_unchanged_inside_and_gives_our_model(grid, tmp_path):
    # One round: in the second, sums of another order would already be rounded to other codes.
    result = flower(FedAvg(**settings()), grid, rounds=1)
    ours = fp.simulate(dataclasses.replace(RECIPE, rounds=1), folder=tmp_path / "run", observer=Silent())
    model = build_model(RECIPE, build_task(RECIPE))
    model.load_state_dict(result.arrays.to_torch_state_dict())
    merged = fp.merge_(model).state_dict()
    for name, tensor in load_file(ours.folder / "model.safetensors").items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)
    assert grid.ledger.total() == ours.ledger.total()


def test_flowers_fedadam_and_federated_evaluation_run_unchanged(grid):
    result = flower(FedAdam(**(settings() | {"fraction_evaluate": 1.0}), eta=0.01), grid)
    assert set(result.evaluate_metrics_clientapp) == {1, 2}
    assert 0 <= result.evaluate_metrics_clientapp[2]["accuracy"] <= 1
    assert grid.ledger.by("purpose")["weights"] > 0
    assert all(np.isfinite(array).all() for array in result.arrays.to_numpy_ndarrays())


def poisoned(inner, tmp_path):
    """A Grid in which one client of four sends back a model a million times too large."""
    recipe = dataclasses.replace(RECIPE, uplink="fp32")

    def change(reply):
        return with_state(reply, lambda state: {name: tensor * 1e6 for name, tensor in state.items()})

    tampering = Tampering(inner, change, lambda clients: clients[:1])
    return CodedGrid(tampering, recipe, initial_state(recipe), Ledger())


def norm(arrays):
    return sum(float((tensor.double() ** 2).sum()) for tensor in arrays.to_torch_state_dict().values()) ** 0.5


@pytest.mark.parametrize(
    ("strategy", "robust"),
    [
        (FedAvg(**settings()), False),
        (FedMedian(**settings()), True),
        (FedTrimmedAvg(**settings(), beta=0.25), True),
        (Krum(**settings(), num_malicious_nodes=1), True),
    ],
    ids=["FedAvg", "FedMedian", "FedTrimmedAvg", "Krum"],
)
def test_flowers_robust_strategies_run_unchanged_and_stand_a_poisoned_client(strategy, robust, tmp_path):
    with local_grid(RECIPE, tmp_path) as inner:
        result = flower(strategy, poisoned(inner, tmp_path), rounds=1)
    assert (norm(result.arrays) < 2 * norm(ArrayRecord(initial_state(RECIPE)))) is robust


def test_flowers_differential_privacy_runs_unchanged(tmp_path):
    before = initial_state(RECIPE)
    moved_by = {}
    for clip, noise in ((0.01, 0.0), (10.0, 0.0), (0.01, 5.0)):
        inside = DifferentialPrivacyServerSideFixedClipping(FedAvg(**settings()), noise, clip, 4)
        with local_grid(RECIPE, tmp_path / f"{clip}-{noise}") as inner:
            grid = CodedGrid(inner, RECIPE, initial_state(RECIPE), Ledger())
            after = flower(inside, grid, rounds=1).arrays.to_torch_state_dict()
        moved_by[clip, noise] = norm(ArrayRecord({name: after[name] - own for name, own in before.items()}))
        assert grid.ledger.by("direction")["up"] > 0
    assert moved_by[0.01, 0.0] <= 0.01 * 1.01 < moved_by[10.0, 0.0]
    # The noise of the mean is 5 · 0.01 / 4 in each of the numbers.
    numbers = sum(tensor.numel() for tensor in before.values())
    assert moved_by[0.01, 5.0] == pytest.approx(0.0125 * numbers**0.5, rel=0.2)


def test_the_first_model_travels_as_a_seed_and_any_other_as_weights(grid):
    first = grid.encode(grid.initial, 1)
    assert (first.purpose, len(first.blob)) == ("seed", 16)
    changed = {name: tensor + 0.25 for name, tensor in grid.initial.items()}
    second = grid.encode(changed, 2)
    assert second.purpose == "weights"
    assert len(second.blob) == codec("fp16").size(grid.initial)
    for name, tensor in changed.items():
        torch.testing.assert_close(second.received[name] + second.lost.get(name, 0), tensor)


def test_a_seed_that_gives_another_model_is_refused_by_the_client_with_the_remedy(tmp_path):
    initial = {name: tensor + 1 for name, tensor in initial_state(RECIPE).items()}
    with local_grid(RECIPE, tmp_path) as inner:
        grid = CodedGrid(inner, RECIPE, initial, Ledger())
        content = RecordDict({ARRAYS: ArrayRecord(initial), CONFIG: ConfigRecord({ROUND: 1})})
        (reply,) = grid.send_and_receive([Message(content, 2, "train")], timeout=30)
    assert reply.has_error()
    assert "first_broadcast" in reply.error.reason


def test_message_bytes_are_the_serialised_object_tree_and_little_more_than_a_megabyte_of_payload(grid):
    state = {"w": torch.zeros(300_000)}
    big = CodedGrid(grid.inner, RECIPE, state, Ledger())
    record = big.encode({"w": torch.rand(300_000)}, 2).record()
    content = RecordDict({ARRAYS: record, CONFIG: ConfigRecord({ROUND: 2})})
    payload = len(next(iter(record.values())).data)
    size = Sizes().of(Message(content, 2, "train"))
    assert payload < size <= 1.005 * payload


@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=3),
    st.dictionaries(
        st.text(max_size=5), st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False)), max_size=3
    ),
    st.integers(1, 2**62),
    st.text(max_size=300),
)
def test_a_size_follows_from_lengths_alone(blobs, figures, node, text):
    identify()

    def message(fill):
        arrays = {f"a{place}": Array("uint8", (len(blob),), "x", fill(blob)) for place, blob in enumerate(blobs)}
        records = {ARRAYS: ArrayRecord(arrays), "metrics": MetricRecord(figures), CONFIG: ConfigRecord({"text": text})}
        found = Message(RecordDict(records), node, "train", group_id="7")
        found.metadata.__dict__["_message_id"] = "0" * 32
        return found

    sizes = Sizes()
    assert sizes.of(message(lambda blob: blob)) == Sizes().of(message(lambda blob: blob))
    generator = np.random.default_rng(node % 1000)
    other = message(lambda blob: generator.bytes(len(blob)))
    if all(len(blob) > 8 or not blob for blob in blobs):  # no two chunks are equal
        assert sizes.of(other) == Sizes().of(other)


def test_equal_chunks_travel_once_and_are_no_measure_of_others():
    identify()

    def message(data):
        return Message(RecordDict({ARRAYS: ArrayRecord({"w": Array("uint8", (len(data),), "x", data)})}), 2, "train")

    size, sizes = 2 * 5242880, Sizes()
    assert sizes.of(message(bytes(size))) < size
    assert sizes.of(message(np.random.default_rng(0).bytes(size))) > size


def test_a_broadcast_of_other_arrays_is_refused_before_it_is_sent(grid):
    content = RecordDict({ARRAYS: ArrayRecord({"x": torch.zeros(2)}), CONFIG: ConfigRecord({ROUND: 1})})
    with pytest.raises(fp.UpdateError, match="1 arrays"):
        grid.push_messages([Message(content, 2, "train")])


def moved(state, by, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor + by * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}


def loss(broadcast):
    return sum(float(lost.square().sum()) for lost in broadcast.lost.values())


def test_a_client_is_sent_the_difference_to_the_nearest_model_it_holds(grid):
    coded = CodedGrid(grid.inner, dataclasses.replace(RECIPE, downlink="int4"), grid.initial, Ledger())
    held = moved(coded.initial, 0.5)
    coded.memory.hold("client-0", held)
    state = moved(held, 0.01, seed=1)
    for client, key in (("client-0", coded.memory.key("client-0")), ("client-1", "initial"), (None, "initial")):
        assert coded._reference(state, client)[0] == key
    known, unknown = coded.encode(state, 3, "client-0"), coded.encode(state, 3, "client-1")
    assert loss(known) < 0.01 * loss(unknown)
    assert len(known.blob) == len(unknown.blob)
    # Far from everything known, the model itself is smaller than any difference to it.
    assert coded._reference({name: -tensor for name, tensor in held.items()}, "client-0") == ("", None)
    off = CodedGrid(
        grid.inner, dataclasses.replace(coded.recipe, differences=False), grid.initial, Ledger(), coded.memory
    )
    assert off._reference(state, "client-0") == ("", None)


def test_downlink_errors_do_not_add_up_over_rounds(grid):
    coded = CodedGrid(grid.inner, dataclasses.replace(RECIPE, downlink="int2"), grid.initial, Ledger())
    state = dict(coded.initial)
    for round in range(2, 30):
        state = moved(state, 0.01, seed=round)
        sent = coded.encode(state, round, "client-0")
        coded.memory.hold("client-0", sent.received)
        step = sum(float((0.01 * torch.randn(tensor.shape)).square().sum()) for tensor in state.values())
        # The difference holds what all earlier ones lost: feedback of the error, without a residual of its own.
        assert loss(sent) < 3 * step
