"""The task: what mills train on, what a simulation sends, and a run used on photographs."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fedpara as fp
from client.tasks.knitting import UNSEEN
from client.tasks.knitting.examples import Swatches
from client.tasks.knitting.files import read_program
from client.tasks.knitting.instructions import mirrored
from client.tasks.knitting.losses import cell_weights, cross_entropy, perceptual, shifted_cross_entropy, syntax
from client.tasks.knitting.network import scaled
from client.tasks.knitting.programs import random_programs
from client.tasks.knitting.renderer import render
from fedpara.app import find_recipe
from fedpara.config import read_recipe
from fedpara.errors import ConfigError, DataError
from fedpara.report import write
from fedpara.seeds import generator_for
from fedpara.task import build_model, build_task
from tests.client.knitting.test_knitting_files import make_mill
from tests.conftest import Silent
from tests.fedpara.test_apply import call

SMALL = {"clients": 2, "cohort": 2, "rounds": 2, "workers": 1, "width": 8, "depth": 1, "samples": 8, "batch_size": 4}
SMALL |= {"pairs": 4, "shifts": True, "ground": 0.1}


def recipe(**changes):
    return read_recipe(find_recipe("knitting"), SMALL | changes)


def task_of(**changes):
    return build_task(recipe(**changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "knitting"
    return fp.simulate(recipe(), folder=folder, observer=Silent())


@pytest.fixture
def use(run, capsys, monkeypatch):
    """fedpara apply on the run: what it prints, where it ends with this code."""

    def apply(*words, code=0):
        found, out, error = call(capsys, monkeypatch, "apply", run.folder, *words)
        assert found == code, error
        return out + error

    return apply


@pytest.fixture
def photograph(tmp_path):
    """A colour JPEG of some fabric, as large as `fabric` says."""

    def take(name="photo.jpg", rows=20, columns=20, size=None, exif=None):
        fabric = render(random_programs(1, generator_for(4), size=(rows, columns)))[0]
        image = Image.fromarray(fabric.numpy())
        image = image.resize(size or image.size)
        more = {"exif": exif} if exif else {}
        Image.merge("RGB", [image, image.point(lambda v: v // 2), image]).save(tmp_path / name, **more)
        return tmp_path / name

    return take


def test_mills_have_photographs_of_their_own_and_the_judged_ones_are_of_none_of_them():
    task = task_of(alone=3)
    names = task.population(2)
    assert names == ["mill-1", "mill-2"]
    first, second = (task.client_data(name, 2) for name in names)
    assert first.train.photographs.shape == (4, 160, 160)
    assert first.train.alone.shape == (3, 160, 160)
    assert not torch.equal(first.train.photographs, second.train.photographs)
    assert UNSEEN not in names
    judged = task.server_data()
    assert not any(torch.equal(own, other) for own in judged.tensors[0] for other in first.train.photographs)
    assert task.mill(UNSEEN, 2).yarns != task.mill("mill-1", 2).yarns


def test_fewer_pairs_are_the_first_of_more():
    few, more = (task_of(pairs=n).client_data("mill-1", 2).train for n in (3, 12))
    assert torch.equal(few.photographs, more.photographs[:3])
    assert torch.equal(few.programs, more.programs[:3])


def test_an_epoch_is_as_long_however_many_photographs_there_are():
    generator = generator_for(0)
    photographs = torch.randint(0, 255, (3, 16, 16), generator=generator, dtype=torch.uint8)
    programs = torch.randint(0, 17, (3, 2, 2), generator=generator, dtype=torch.uint8)
    own = Swatches(photographs, programs, photographs[:2], 10)
    assert len(own) == 10
    taken, told, alone = own.batch(torch.tensor([0, 4, 9]))
    assert torch.equal(taken, photographs[[0, 1, 0]])
    assert torch.equal(told, programs[[0, 1, 0]])
    assert torch.equal(alone, photographs[[0, 0, 1]])
    assert len(Swatches(photographs, programs, torch.empty(0), 10).batch(torch.tensor([1]))) == 2


def test_a_batch_is_mirrored_with_its_programs_and_has_renderings_beside():
    task = task_of(alone=4)
    data = task.client_data("mill-1", 2).train
    raw = data.batch(torch.arange(4))
    photographs, programs, drawn, known, weak, strong = task.prepare(raw, generator_for(0))
    flipped = [not torch.equal(a, b) for a, b in zip(programs, raw[1], strict=True)]
    assert 0 < sum(flipped) < 4
    for place, turned in enumerate(flipped):
        image = raw[0][place].flip(-1) if turned else raw[0][place]
        assert torch.equal(photographs[place], scaled(image[None])[0])
        assert torch.equal(programs[place], mirrored(raw[1][place]) if turned else raw[1][place])
    assert torch.equal(drawn, scaled(render(known)))
    assert weak.shape == strong.shape == photographs.shape
    assert not torch.equal(weak, strong)
    again = task.prepare(raw, generator_for(0))
    assert all(torch.equal(a, b) for a, b in zip(again, task.prepare(raw, generator_for(0)), strict=True))


def test_the_loss_is_the_sum_that_it_says():
    torch.manual_seed(0)
    task = task_of(refiner=4, adversarial=0.0, perceptual=0.3, syntax=0.2, alpha=0.7)
    model = task.model()
    batch = task.prepare(task.client_data("mill-1", 2).train.batch(torch.arange(4)), generator_for(0))
    photographs, programs, drawn, known = batch
    refined = model.refiner(photographs)
    of_photographs, of_drawn = model.reader(refined), model.reader(drawn)
    wanted = 0.7 * cross_entropy(of_drawn, known, cell_weights(known, 0.1)).mean()
    wanted = wanted + 0.3 * shifted_cross_entropy(of_photographs, programs, cell_weights(programs, 0.1)).mean()
    wanted = wanted + 0.2 * syntax(torch.cat([of_photographs, of_drawn]))
    wanted = wanted + 0.3 * perceptual(refined, scaled(render(programs)))
    assert task.loss(model, batch).item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("changes", [{"alpha": 0.0}, {"alpha": 1.0}, {"shifts": False}])
def test_parts_that_weigh_nothing_are_left_out(changes):
    torch.manual_seed(0)
    task = task_of(**changes)
    model = task.model()
    batch = task.prepare(task.client_data("mill-1", 2).train.batch(torch.arange(4)), generator_for(0))
    photographs, programs, drawn, known = batch
    if changes.get("alpha") == 1:
        wanted = cross_entropy(model(drawn), known, cell_weights(known, 0.1)).mean()
    elif changes.get("alpha") == 0:
        wanted = shifted_cross_entropy(model(photographs), programs, cell_weights(programs, 0.1)).mean()
    else:
        own = cross_entropy(model(photographs), programs, cell_weights(programs, 0.1)).mean()
        wanted = 0.5 * (own + cross_entropy(model(drawn), known, cell_weights(known, 0.1)).mean())
    assert task.loss(model, batch).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_photographs_alone_teach_the_refiner_and_what_is_surely_read_of_them_the_reader():
    def gradients(**changes):
        task = task_of(alone=4, refiner=4, adversarial=0.5, threshold=0.0, **changes)
        torch.manual_seed(0)
        model = task.model()
        batch = task.prepare(task.client_data("mill-1", 2).train.batch(torch.arange(4)), generator_for(0))
        task.loss(model, batch).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    without, more = gradients(), gradients(pseudo=1.0)
    assert float((without["reader.head.weight"] - more["reader.head.weight"]).abs().max()) > 1e-4
    assert all(float(own.abs().sum()) > 0 for name, own in without.items() if name.startswith("discriminator.judge.2"))


def test_what_is_not_surely_read_teaches_nothing():
    losses = []
    for pseudo in (0.0, 1.0):
        task = task_of(alone=4, pseudo=pseudo, threshold=1.0)
        torch.manual_seed(0)
        batch = task.prepare(task.client_data("mill-1", 2).train.batch(torch.arange(4)), generator_for(0))
        losses.append(task.loss(task.model(), batch).item())
    assert losses[0] == losses[1]


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="teaches the refiner, and there is none"):
        task_of(perceptual=0.5)
    with pytest.raises(ConfigError, match="alpha = 1 leaves photographs out"):
        task_of(alpha=1.0, refiner=8)
    with pytest.raises(DataError, match="needs data-dir"):
        task_of(photographs="folder").population(2)


def test_a_simulation_counts_its_bytes_and_judges_on_the_unseen_mill(run):
    last = run.rounds[-1]
    for key in ("accuracy", "foreground", "accuracy_aligned", "foreground_aligned", "violations", "client_accuracy"):
        assert 0 <= last[key] <= 1
    assert last["accuracy_aligned"] >= last["accuracy"] - 0.05  # fewer cells, the best of nine places
    assert run.ledger.total(direction="up") > 0
    task = build_task(run.recipe)
    judged = task.judge(run.model(), task.server_data(), torch.device("cpu"))
    assert judged.values["accuracy"] == pytest.approx(last["accuracy"], abs=0.01)


def test_who_holds_what_counts_every_cell(run):
    held = run.task.holdings(2)
    assert held.counts.sum(1).tolist() == [1600, 1600]
    assert held.classes[4] == "FR1"


def test_the_report_shows_tables_and_pictures_and_calls_simulated_what_is(run):
    page = write(run).read_text()
    assert "simulated photographs of a mill that nobody trained on" in page
    assert "most frequent instruction everywhere" in page
    assert page.count("data:image/png") >= 1
    assert "Simulated photographs, what was read" in page


def test_a_photograph_becomes_a_program_a_chart_a_fabric_and_confidences(use, photograph, tmp_path):
    output = tmp_path / "program.png"
    printed = use(photograph(), output)
    program = read_program(output)
    assert program.shape == (20, 20)
    rows = (tmp_path / "program-confidence.csv").read_text().splitlines()
    assert rows[0] == "row,column,instruction,confidence"
    assert len(rows) == 401
    assert all(0 <= float(line.split(",")[3]) <= 1 for line in rows[1:])
    with Image.open(tmp_path / "program-fabric.png") as fabric:
        assert np.array_equal(np.array(fabric), render(program[None])[0].numpy())
    for part in ("chart", "confidence"):
        with Image.open(tmp_path / f"program-{part}.png") as image:
            assert min(image.size) > 100
    assert "20 x 20 stitches, mean confidence" in printed
    assert "knittable" in printed


def test_size_colour_and_exif_do_not_matter(use, photograph, tmp_path):
    plain = photograph("plain.png")
    first = tmp_path / "first.png"
    use(plain, first)
    turned = Image.open(plain).transpose(Image.Transpose.ROTATE_90)  # lies on its side, and EXIF says so
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    second = tmp_path / "second.png"
    use(tmp_path / "turned.png", second)
    assert torch.equal(read_program(first), read_program(second))
    Image.open(plain).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "unsaid.png")
    use(tmp_path / "unsaid.png", second, "--rotate", "90")
    assert torch.equal(read_program(first), read_program(second))
    use(photograph("large.png", size=(640, 640)), second)
    same = (read_program(first) == read_program(second)).float().mean()
    assert float(same) > 0.7


def test_other_numbers_of_stitches_are_read(use, photograph, tmp_path):
    output = tmp_path / "wide.png"
    wide = photograph("wide.jpg", rows=10, columns=24)
    use(wide, output, "--rows", "10", "--columns", "24")
    assert read_program(output).shape == (10, 24)
    use(wide, output, "--rows", "10", "--columns", "10", "--crop", "true")
    assert read_program(output).shape == (10, 10)


def test_what_cannot_be_read_is_refused_in_words(use, photograph, tmp_path):
    output = tmp_path / "o.png"

    def refused(*words):
        return use(*words, code=1)

    assert "cut it to whole stitches" in refused(photograph("wide.jpg", rows=10, columns=24), output)
    assert "4 pixels a stitch are the least" in refused(photograph("tiny.png", size=(40, 40)), output)
    Image.new("RGB", (160, 160), (90, 90, 90)).save(tmp_path / "flat.jpg")
    assert "one grey all over" in refused(tmp_path / "flat.jpg", output)
    (tmp_path / "no.jpg").write_bytes(b"nothing")
    assert "cannot be read as an image" in refused(tmp_path / "no.jpg", output)
    assert "is written as .png" in refused(photograph(), tmp_path / "o.jpg")
    assert "name another output" in refused(photograph("own.png"), tmp_path / "own.png")
    assert "create it first" in refused(photograph(), tmp_path / "nowhere" / "o.png")
    assert "give a photograph and where" in refused(photograph())
    assert not output.exists()


def test_mills_folders_train_together(tmp_path):
    for seed, name in enumerate(("north", "south", "test")):
        make_mill(tmp_path / name, 4, 1, seed=seed, stitches=(12, 16))
    done = fp.simulate(
        recipe(photographs="folder", data_dir=str(tmp_path), rounds=1, refiner=4, pseudo=0.5, holdout=0.25),
        folder=tmp_path / "run",
        observer=Silent(),
    )
    assert 0 <= done.rounds[-1]["accuracy"] <= 1
    assert 0 <= done.rounds[-1]["client_accuracy"] <= 1
    assert "the photographs in test/" in write(done).read_text()


def test_the_networks_are_factorised_at_a_third_of_the_bytes():
    own = build_model(recipe(width=24, depth=6), task_of())
    dense = build_model(recipe(width=24, depth=6, parametrization="none"), task_of())
    assert fp.size(own).payload_bytes < fp.size(dense).payload_bytes / 2
    whole = read_recipe(find_recipe("knitting"))
    sent = [
        fp.size(build_model(other, build_task(other)), codec="int8").payload_bytes
        for other in (whole, read_recipe(find_recipe("knitting"), {"parametrization": "none"}))
    ]
    assert sent[1] > 3 * sent[0]


def test_the_published_photograph_goes_through(use, tmp_path):
    folder = Path(os.environ.get("FEDPARA_DATA") or "nowhere") / "knitting"
    found = sorted(folder.glob("*.jpg"))
    if not found:
        pytest.skip("FEDPARA_DATA names no folder with knitting/*.jpg")
    output = tmp_path / "program.png"
    use(found[0], output)
    assert read_program(output).shape == read_program(folder / f"{found[0].stem}-prog.png").shape
