"""The text task: its three layouts, who gets what, what is judged, and writing."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fedpara as fp
from client.tasks.text import Text
from client.tasks.text.generate import generate
from client.tasks.text.shares import LENGTH, Cuts, share
from fedpara.cli import main
from fedpara.config import read_recipe
from fedpara.data.text import ALPHABET, CLASSES, UNKNOWN, Author, decode, encode, load_text, read_text
from fedpara.errors import ConfigError, DataError
from fedpara.models import LSTM
from fedpara.parametrize import FedPara, LowRank, describe, parameter_count, parametrize_
from fedpara.task import build_model, build_task
from tests.conftest import Silent

VERSE = "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\n"
SMALL = {
    "name": "text",
    "task": "text",
    "rounds": 2,
    "clients": 3,
    "cohort": 2,
    "gamma": 0.0,
    "workers": 1,
    "training": {"epochs": 1, "batch_size": 16, "lr": 1.0, "clip": 5.0},
    "text": {"dataset": "folder", "hidden": 16, "holdout": 0.1, "test": 0.1, "stride": 20},
}


def write_roles(folder, texts, name="roles.json.gz"):
    content = json.dumps({"users": list(texts), "user_text": texts}).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    return folder / name


def leaf(texts, stride=1):
    """LEAF's table of these texts."""
    data = {}
    for user, text in texts.items():
        places = range(0, len(text) - 80, stride)
        data[user] = {"x": [text[p : p + 80] for p in places], "y": [text[p + 80] for p in places]}
    return {"users": list(texts), "num_samples": [len(own["x"]) for own in data.values()], "user_data": data}


def write_leaf(folder, part, texts, name="all_data_0.json", **how):
    (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / part / name).write_text(json.dumps(leaf(texts, **how)))


@pytest.fixture
def plays(tmp_path):
    """Four roles with text enough and one that says little."""
    write_roles(tmp_path, {f"play/ROLE {n}": VERSE * (14 + n) for n in range(4)} | {"play/Boy": "Ay, sir.\n"})
    return tmp_path


def task(folder, seed=0, **options):
    return Text(Text.Options(**{"dataset": "folder", **options}), data_dir=str(folder), seed=seed)


def texts_of(windows):
    return [decode(row) for row in windows.batch(torch.arange(len(windows)))[0].tolist()]


# ----------------------------------------------------------------------------------------------------------- alphabet


def test_the_alphabet_has_leafs_80_characters_and_one_class_more():
    assert len(ALPHABET) == len(set(ALPHABET)) == UNKNOWN == 80
    assert CLASSES == 81
    assert decode(encode(ALPHABET)) == ALPHABET
    assert encode("a\u00e9\U0001f3ad\x7f").tolist()[1:] == [UNKNOWN] * 3


@given(st.text())
def test_any_text_is_encoded_character_by_character(text):
    assert encode(text).tolist() == [ALPHABET.find(letter) if letter in ALPHABET else UNKNOWN for letter in text]


# ------------------------------------------------------------------------------------------------------------ readers


@pytest.mark.parametrize("name", ["roles.json", "roles.json.gz"])
def test_a_role_file_plain_or_gzipped(tmp_path, name):
    path = write_roles(tmp_path, {"a": "Hello", "b": "é"}, name)
    for source in (path, tmp_path):
        found = read_text(source)
        assert [(own.name, decode(own.symbols)) for own in found.authors] == [("a", "Hello"), ("b", "�")]
        assert found.test == ()


@pytest.mark.parametrize("stride", [1, 3, 80, 200])
def test_leafs_windows_are_given_back_one_by_one(tmp_path, stride):
    texts = {"a": VERSE * 4, "b": (VERSE * 5)[::-1]}
    write_leaf(tmp_path, "train", texts, stride=stride)
    for author, text in zip(read_text(tmp_path).authors, texts.values(), strict=True):
        found = [decode(author.symbols[begin : begin + 81]) for begin in author.starts]
        assert found == [text[p : p + 81] for p in range(0, len(text) - 80, stride)]
        assert stride > 1 or decode(author.symbols) == text  # overlapping windows are the text again


def test_leafs_folder_of_several_files_with_a_test_of_its_own(tmp_path):
    write_leaf(tmp_path, "train", {"a": VERSE * 6}, "a.json")
    write_leaf(tmp_path, "train", {"b": VERSE * 5, "c": VERSE}, "b.json")
    write_leaf(tmp_path, "test", {"a": (VERSE * 2)[:100], "b": (VERSE * 2)[:85]})
    own = task(tmp_path, holdout=0.2, test=0.3)
    assert own.population(2) == ["a", "b"]
    assert len(own.server_data()) == 20 + 5  # all of test/ and nothing else
    assert own.shares.left_out == 1
    kept = own.client_data("a", 2)
    assert len(texts_of(kept.train)) + len(kept.held_out) <= 6 * len(VERSE) - 80


def test_a_folder_of_text_files_is_a_client_each(tmp_path):
    for name, copies in (("north", 12), ("south", 13), ("note", 1)):
        (tmp_path / f"{name}.txt").write_bytes(b"\xef\xbb\xbf" + (VERSE * copies).replace("\n", "\r\n").encode())
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "other.txt").write_text(VERSE * 2)
    own = task(tmp_path)
    assert set(own.population(2)) == {"north", "south"}
    assert len(own.server_data()) == 2 * len(VERSE) - 80
    assert "1 too short were left out" in own.holdings(2).table()
    own.holdings(2).plot(tmp_path / "holdings.svg")
    assert (tmp_path / "holdings.svg").stat().st_size > 1000


def test_a_servers_folder_may_hold_text_to_judge_on_alone(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "other.txt").write_text(VERSE * 2)
    assert len(task(tmp_path).server_data()) == 2 * len(VERSE) - 80
    with pytest.raises(ConfigError, match="0 authors"):
        task(tmp_path).population(1)


def broken(change):
    table = leaf({"a": VERSE})
    change(table)
    return json.dumps(table).encode()


@pytest.mark.parametrize(
    ("name", "content", "needle"),
    [
        ("a.json.gz", b"not gzip", "cannot be read as text"),
        ("a.json.gz", gzip.compress(b'{"users": ["a"]}', mtime=0)[:20], "cannot be read as text"),
        ("a.json", b"\xff\xfe\x00", "cannot be read as text"),
        ("a.json", b'{"users": [', "is not valid JSON"),
        ("a.json", b"[" * 100_000, "is not valid JSON"),
        ("a.json", b"[1]", "holds no table"),
        ("a.json", b'{"users": []}', "users must be a list of names"),
        ("a.json", b'{"users": [3], "user_text": {}}', "users must be a list of names"),
        ("a.json", b'{"users": ["a"], "text": {}}', "neither user_text"),
        ("a.json", b'{"users": ["a"], "user_text": {"b": "x"}}', "user_text of 'a' must be a text"),
        ("a.json", b'{"users": ["a"], "user_text": ["x"]}', "user_text must be a table"),
        ("a.json", b'{"users": ["a", "a"], "user_text": {"a": "x"}}', "'a' is in a.json already"),
        ("a.json", broken(lambda t: t["user_data"]["a"]["x"].__setitem__(0, "short")), "80 characters, given 5"),
        ("a.json", broken(lambda t: t["user_data"]["a"]["x"].__setitem__(0, 7)), "80 characters, given 7"),
        ("a.json", broken(lambda t: t["user_data"]["a"]["y"].__setitem__(0, "ab")), "one character, given 'ab'"),
        ("a.json", broken(lambda t: t["user_data"]["a"]["y"].pop()), "lists of one length"),
        ("a.json", broken(lambda t: t.update(num_samples=[5])), "num_samples says 5"),
        ("a.json", broken(lambda t: t.update(num_samples=5)), "num_samples must be a list"),
        ("a.txt", b"caf\xe9", "cannot be read as text"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, name, content, needle):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=needle) as caught:
        read_text(tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPARA_DATA", str(tmp_path))
    with pytest.raises(DataError, match="not on this machine"):
        load_text("shakespeare", None)
    with pytest.raises(DataError, match="needs data-dir"):
        load_text("folder", None)
    with pytest.raises(DataError, match="neither"):
        read_text(tmp_path)
    with pytest.raises(DataError, match="nothing is at"):
        read_text(tmp_path / "none")


# ------------------------------------------------------------------------------------------------------------- shares


@given(st.integers(0, 700), st.integers(1, 90), st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from([0.0, 0.2]))
def test_no_character_is_in_two_parts(count, stride, holdout, test):
    symbols = (np.arange(count) % 80).astype(np.uint8)
    found = share(Author("a", symbols), Cuts(stride, holdout, test, 0, 0))
    if found is None:
        assert count < 81 / min(part for part in (1 - holdout - test, holdout or 1, test or 1)) + 3
        return
    ends = 0
    for part in (found.train, found.held_out, found.test):
        if len(part):
            assert part.starts[0] >= ends
            ends = int(part.starts[-1]) + LENGTH
    assert ends <= count
    assert (found.train.starts.diff() == stride).all()


def test_roles_are_drawn_by_the_seed_and_short_ones_left_out(plays):
    own = task(plays)
    assert len(own.population(3)) == 3
    assert own.population(3) == task(plays).population(3)
    assert {tuple(task(plays, seed=seed).population(2)) for seed in range(8)} != {tuple(own.population(2))}
    with pytest.raises(ConfigError, match="4 authors with text enough; 1 too short were left out"):
        own.population(5)
    with pytest.raises(DataError, match="of the client 'play/Boy'"):
        own.client_data("play/Boy", 3)
    assert task(plays, shortest=len(VERSE) * 16).shares.left_out == 3


def test_iid_deals_every_window_once_and_nobody_trains_on_what_is_judged(plays):
    own = task(plays, partition="iid", stride=7)
    names = own.population(5)
    assert names[0] == "client-0000"
    parts = [own.client_data(name, 5) for name in names]
    dealt = sorted(start for part in parts for start in part.train.starts.tolist())
    assert len(set(dealt)) == len(dealt) == sum(len(author.train) for author in own.shares.authors)
    assert max(map(len, (p.train for p in parts))) - min(map(len, (p.train for p in parts))) <= 1
    judged = {place for p in parts for start in p.held_out.starts.tolist() for place in range(start, start + LENGTH)}
    assert not judged & {place for start in dealt for place in range(start, start + LENGTH)}
    with pytest.raises(ConfigError, match="cannot share"):
        own.population(10**6)


def test_longest_and_judged_bound_the_work(plays):
    own = task(plays, longest=1000, judged=7)
    assert {author.characters for author in own.shares.authors} == {1000}
    assert len(own.server_data()) == 7


# -------------------------------------------------------------------------------------------------------------- model


def test_sizes_of_the_lstm():
    model = LSTM()
    assert parameter_count(model) == 820_185
    sizes = {}
    for config in (FedPara(gamma=0.0), LowRank(gamma=0.0)):
        own = parametrize_(LSTM(), config)
        sizes[config.kind] = parameter_count(own)
        dense = {row.name for row in describe(own) if row.kind == "dense"}
        assert dense == {"embedding.weight", "output.weight"}
    assert sizes["fedpara"] == sizes["lowrank"] == 154_633  # R = 16 and 2R = 32: equal parameters


class Known(nn.Module):
    """Is sure of a fixed character after every other."""

    def __init__(self, symbol):
        super().__init__()
        self.symbol = symbol

    def forward(self, text):
        assert text.shape[1] <= 80
        return 10.0 * nn.functional.one_hot(torch.full_like(text, self.symbol), CLASSES).float()


def test_judged_is_the_character_after_a_full_window(plays):
    own = task(plays)
    windows = own.server_data()
    letter = encode("e")[0]
    expected = sum(text[80] == "e" for text in texts_of(windows)) / len(windows)
    found = own.judge(Known(int(letter)), windows, torch.device("cpu"))
    assert found.values["accuracy"] == pytest.approx(expected)
    assert 0 < expected < 1


def test_the_loss_is_over_every_place_or_the_last(plays):
    model, windows = LSTM(hidden=8), task(plays).client_data("play/ROLE 0", 4).train
    batch = task(plays).prepare(windows.batch(torch.arange(3)), torch.Generator())
    logits = model(batch[0][:, :80]).log_softmax(-1)
    losses = -torch.stack([logits[b, p, batch[0][b, p + 1]] for b in range(3) for p in range(80)]).view(3, 80)
    assert task(plays).loss(model, batch).item() == pytest.approx(losses.mean().item(), rel=1e-5)
    assert task(plays, loss="last").loss(model, batch).item() == pytest.approx(losses[:, -1].mean().item(), rel=1e-5)


def test_example_input_traces(plays):
    recipe = read_recipe(SMALL, {"data_dir": str(plays)})
    own = build_task(recipe)
    model = build_model(recipe, own)
    assert model(*own.example_input()).shape == (2, 80, CLASSES)


# ------------------------------------------------------------------------------------------------------------ whole way


@pytest.fixture
def run(plays, tmp_path):
    recipe = read_recipe(SMALL, {"data_dir": str(plays)})
    return fp.simulate(recipe, folder=tmp_path / "run", observer=Silent())


def test_a_federation_trains_writes_and_resumes(run, plays, tmp_path):
    assert run.rounds[-1]["dropped"] == []
    assert run.rounds[-1]["loss"] < run.rounds[0]["loss"] < np.log(CLASSES) + 0.1
    assert "client_accuracy" in run.rounds[-1]
    # The same by way of a checkpoint after the first round, in a folder that was moved.
    recipe = read_recipe(SMALL, {"data_dir": str(plays)})
    fp.simulate(dataclasses.replace(recipe, rounds=1), folder=tmp_path / "a", observer=Silent())
    (tmp_path / "a").rename(tmp_path / "b")
    joined = fp.simulate(recipe, folder=tmp_path / "b", resume=True, observer=Silent())
    assert [row["loss"] for row in joined.rounds] == [row["loss"] for row in run.rounds]
    for kind in ("up", "down"):
        assert joined.ledger.total(kind) == run.ledger.total(kind)


def call(capsys, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["fedpara", *map(str, words)])
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_prompt_is_gone_on_from(run, tmp_path, capsys, monkeypatch):
    words = ("apply", run.folder, "--prompt", "Shall I", "--length", 30, "--seed", 3)
    code, out, _ = call(capsys, monkeypatch, *words)
    assert (code, out[:7], len(out)) == (0, "Shall I", 7 + 30 + 1)
    assert call(capsys, monkeypatch, *words)[1] == out
    assert call(capsys, monkeypatch, *words[:-1], 4)[1] != out
    assert call(capsys, monkeypatch, *words, "--temperature", 0)[1] != out
    (tmp_path / "in.txt").write_text("Shall I")
    code, _, _ = call(capsys, monkeypatch, "apply", run.folder, tmp_path / "in.txt", tmp_path / "out.txt", *words[4:])
    assert (code, (tmp_path / "out.txt").read_text()) == (0, out[:-1])


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["nowhere.txt"], "nowhere.txt cannot be read"),
        (["nowhere.txt", "--prompt", "a"], "both --prompt and nowhere.txt"),
        (["--prompt", "a", "--temperature", "-1"], "outside its range"),
        (["--prompt", "a", "--length", "0"], "outside its range"),
        (["--promt", "a"], "did you mean 'prompt'"),
    ],
)
def test_nonsense_is_one_line(run, words, needle, capsys, monkeypatch):
    code, _, err = call(capsys, monkeypatch, "apply", run.folder, *words)
    assert (code, err.count("\n")) == (1 if "nowhere.txt" in needle else 2, 1)
    assert needle in err


def test_what_is_written_follows_the_temperature():
    model = LSTM(hidden=8).eval()
    with torch.no_grad():
        model.output.bias[encode("x")[0]] = 3.0
        model.output.bias[UNKNOWN] = 50.0
    assert generate(model, "", 90, temperature=0, seed=0) == "x" * 90
    warm = generate(model, "a" * 100, 90, temperature=1.0, seed=0)
    assert len(set(warm)) > 1
    assert "�" not in warm


def test_the_plays_are_read(real_data):
    if not (real_data / "shakespeare").is_dir():
        pytest.skip("FEDPARA_DATA holds no shakespeare/")
    own = Text(Text.Options(), data_dir=str(real_data))
    assert len(own.shares.authors) + own.shares.left_out == 1347
    assert len(own.population(100)) == 100
    assert len(own.server_data()) == 10_000
