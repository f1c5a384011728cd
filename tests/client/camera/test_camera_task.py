"""The task: what it trains on, what a simulation sends, and a run used on photographs."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fedpara as fp
from client.tasks.camera import baselines, synthetic
from client.tasks.camera.calibrate import calibrate, grey, radiance
from client.tasks.camera.examples import TILE, held_out, tiles
from client.tasks.camera.exhibits import score
from client.tasks.camera.files import read_bracket
from client.tasks.camera.image_formation import View, radius_squared
from client.tasks.camera.network import BlackBox, SelfCalibrating, retake
from client.tasks.camera.predict import predict
from client.tasks.camera.radiance_file import read_radiance
from client.tasks.camera.response import rmse
from client.tasks.camera.scenes import BRACKET, Camera, Scene, built_in
from client.tasks.camera.use import tone_mapped, white_balance
from fedpara.app import find_recipe
from fedpara.config import read_recipe
from fedpara.errors import ConfigError, DataError
from fedpara.report import write
from fedpara.seeds import generator_for
from fedpara.task import build_model, build_task
from simulations.local import LocalGrid
from tests.client.camera.test_camera_files import take
from tests.conftest import Silent
from tests.fedpara.test_apply import call

SMALL = {"clients": 2, "cohort": 2, "rounds": 2, "workers": 1, "width": 8, "ratio": 0.5}
SMALL |= {"responses": "parametric", "batch_size": 20}


def recipe(**changes):
    return read_recipe(find_recipe("camera"), SMALL | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "camera"
    return fp.simulate(recipe(), folder=folder, observer=Silent())


@pytest.fixture(scope="module")
def camera():
    return built_in(3, "camera-4", 0)


def test_a_simulated_camera_takes_a_bracket_and_what_it_is_judged_by_is_never_trained_on(camera):
    (own,) = camera.scenes
    assert [photo.exposure for photo in own.train] == [*BRACKET, 0.0]
    assert [photo.row for photo in own.train] == [0, 1, 2, 3]
    assert {photo.row for scene in camera.unseen for photo in scene.train} == {-1}
    held, trained = held_out(camera), tiles(camera.scenes)
    inside = {id(photo) for a, b, _, _ in trained.pairs for photo in (a, b)}
    assert inside == {id(photo) for photo in own.train}
    assert not inside & {id(wanted) for _, wanted in held.pairs}
    assert {wanted.exposure for _, wanted in held.pairs} == {-3, -2, 2, 3}
    again = built_in(3, "camera-4", 0)
    assert torch.equal(again.scenes[0].train[2].pixels, own.train[2].pixels)
    assert not torch.equal(built_in(3, "camera-4", 1).scenes[0].train[2].pixels, own.train[2].pixels)


def test_tiles_of_two_framings_show_the_same_part_of_the_scene(camera):
    found = tiles(camera.scenes)
    x, y, valid, exposures, rows, radii = found.batch(torch.arange(len(found)))
    assert x.shape == y.shape == (len(found), 3, TILE, TILE)
    assert bool(valid.all())
    same = exposures[:, 0] == exposures[:, 1]
    assert bool(same.any())
    assert bool((rows[same][:, 0] != rows[same][:, 1]).all())
    assert not torch.equal(radii[same][:, 0], radii[same][:, 1])
    difference = (x[same].float() - y[same].float()).abs().mean()
    unrelated = (x[same].float() - y[same].float().roll(7, -1)).abs().mean()
    assert difference < 0.7 * unrelated


def test_a_synthetic_pair_obeys_the_camera_it_was_made_with():
    x = torch.rand(4, 3, TILE, TILE, generator=generator_for(0))
    radius = radius_squared(TILE, TILE).expand(4, 1, -1, -1)
    given, wanted, first, second = synthetic.reexposed(x, radius, generator_for(1))
    camera = SelfCalibrating(1, 8).camera
    formed = camera(camera.develop(given, first), second)
    sure = (given > 0.1) & (given < 0.95)
    assert float((formed.clamp(0, 1) - wanted)[sure].abs().mean()) < 0.02
    shuffled = camera(camera.develop(given, View(first.response.flip(0), first.log_gain)), second).clamp(0, 1)
    assert float((shuffled - wanted)[sure].abs().mean()) > 0.02
    again = synthetic.reexposed(x, radius, generator_for(1))
    assert torch.equal(again[0], given)


def test_an_untrained_model_is_physics_alone_and_gives_back_what_it_is_given():
    model = SelfCalibrating(1, 8).eval()
    pixels = torch.rand(2, 3, 21, 30, generator=generator_for(0)) * 0.9 + 0.05
    assert torch.allclose(model(pixels, torch.zeros(2)), pixels, atol=2e-3)
    brighter = model(pixels, torch.tensor([1.0, 2.0]))
    assert torch.allclose(brighter[1].clamp(max=1), baselines.gamma_scaling(pixels[1], 2.0), atol=2e-2)
    with torch.no_grad():
        retaken = retake(model, pixels, torch.tensor([1.0, 2.0]))
    assert torch.equal(retaken, model(pixels, torch.tensor([1.0, 2.0])).detach())
    box = BlackBox(8).eval()
    assert torch.equal(box(pixels, torch.ones(2)), pixels)


def test_large_photographs_are_the_same_in_tiles_as_whole(camera, monkeypatch):
    model = SelfCalibrating(4, 8).eval()
    generator = generator_for(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    photo = camera.scenes[0].train[1]
    whole = predict(model, photo, 1.5)
    monkeypatch.setattr(sys.modules["client.tasks.camera.predict"], "SIDE", 32)
    assert torch.allclose(predict(model, photo, 1.5), whole, atol=1e-5)


def test_calibrating_on_a_bracket_finds_the_response(camera):
    photographs = camera.scenes[0].train[:3]
    found = calibrate(photographs)
    assert rmse(found.values()["response"], camera.truth["response"]) < 0.02
    assert rmse(found.values()["response"], camera.truth["response"]) < 0.5 * rmse(
        calibrate(photographs[:1]).values()["response"], camera.truth["response"]
    )
    assert float(grey(found).sum()) == pytest.approx(0, abs=1e-5)


def test_a_real_bracket_is_predicted_from_two_of_its_exposures(memorial):
    """1 s and 8 s of memorial church, physics alone: a stop more from each; radiance beside Debevec and Malik's."""
    bracket = {photo.exposure: photo for photo in read_bracket(memorial)}
    two = [replace(bracket[stops], row=row) for row, stops in enumerate((0.0, 3.0))]
    model = SelfCalibrating(2).eval()
    model.camera = calibrate(two)
    assert float(model.camera.values()["white_balance"].abs().max()) < 0.02  # one film, one light
    assert score(model, two[0], bracket[1.0]) > 30
    assert score(model, two[1], bracket[4.0]) > 30
    reference = read_radiance(memorial / "memorial.hdr").transpose(2, 0, 1)
    shown = (reference[:2] > 0).any(0) & two[0].valid.numpy() & two[1].valid.numpy()  # around it lies pure blue

    def agreement(log_radiance):
        truth = np.log(reference[:, shown].clip(min=1e-6))
        return np.corrcoef(log_radiance[:, shown].numpy().ravel(), truth.ravel())[0, 1]

    with torch.no_grad():
        found = agreement(radiance(model, two))
    assert found > 0.98
    assert found >= agreement(baselines.radiance_map(two, baselines.inverse_responses(two)))


def test_debevec_and_malik_is_their_equation(camera):
    """Against the least squares written out with every pixel's radiance as an unknown."""
    photographs = camera.scenes[0].train[:3]
    found = baselines.inverse_responses(photographs, samples=60)[1]
    shown = np.stack([photo.pixels[1].flatten().numpy() for photo in photographs])
    chosen = np.random.default_rng(0).choice(np.arange(shown.shape[1]), 60, replace=False)
    rows, right = [], []
    for j, photo in enumerate(photographs):
        for i, place in enumerate(chosen):
            z = int(shown[j, place])
            weight = min(z, 255 - z) + 1e-3
            row = np.zeros(256 + 60)
            row[z], row[256 + i] = weight, -weight
            rows.append(row)
            right.append(weight * photo.exposure * np.log(2))
    for z in range(1, 255):
        row = np.zeros(256 + 60)
        row[z - 1 : z + 2] = 20.0 * min(z, 255 - z) * np.array([1, -2, 1])
        rows.append(row)
        right.append(0.0)
    row = np.zeros(256 + 60)
    row[127] = 1
    literal = np.linalg.lstsq(np.array([*rows, row]), np.array([*right, 0.0]), rcond=None)[0][:256]
    assert np.allclose(found[2:254], literal[2:254], atol=1e-4)


def test_only_what_is_shared_travels(tmp_path, monkeypatch):
    """Every message of a simulation, read byte for byte: nothing of a camera is in it."""
    sent = []
    push, keep = LocalGrid.push_messages, LocalGrid._keep

    def pushed(self, messages):
        messages = list(messages)
        sent.extend(messages)
        return push(self, messages)

    def kept(self, node, reply, state):
        sent.append(reply)
        keep(self, node, reply, state)

    monkeypatch.setattr(LocalGrid, "push_messages", pushed)
    monkeypatch.setattr(LocalGrid, "_keep", kept)
    own = recipe(uplink="fp32", downlink="fp32", differences=False, first_broadcast="weights")
    result = fp.simulate(own, folder=tmp_path / "run", observer=Silent())
    files = sorted((result.folder / "clients").glob("*/*/round-*.safetensors"))
    assert len(files) == 4
    private = [tensor for file in files for name, tensor in load_file(file).items() if name.startswith("camera.")]
    assert any(bool(tensor.ne(0).any()) for tensor in private)
    blobs = [
        array.data
        for message in sent
        if message.has_content()
        for record in message.content.array_records.values()
        for array in record.values()
    ]
    assert sum(map(len, blobs)) > 50_000
    whole = b"".join(blobs)
    shared = build_model(own, build_task(own)).state_dict()["context.cells.bias"]
    assert shared.numpy().tobytes() in whole  # so would a private tensor be, if it were sent
    assert not any("context" in name for file in files for name in load_file(file))
    for tensor in private:
        values = tensor.flatten()
        for value in values[values.ne(0)][:40]:
            assert value.numpy().tobytes() not in whole
    keys = {
        str(key) for message in sent if message.has_content() for record in message.content.values() for key in record
    }
    assert not any("camera" in key or "logits" in key for key in keys)
    on_server = load_file(next((result.folder / "checkpoint").glob("*.safetensors")))
    assert not any("camera" in name for name in on_server)


def test_a_simulation_judges_exposures_outside_and_knows_the_true_response(run):
    row = run.rounds[-1]
    assert run.summary["measure"] == "client_psnr"
    assert {"client_psnr_darker", "client_psnr_brighter", "client_psnr_clipped", "client_response_rmse"} <= row.keys()
    assert row["client_psnr"] > run.rounds[0]["client_psnr"]
    assert len(run.clients) == 2


def test_two_workers_give_the_same_bits(run, tmp_path):
    other = fp.simulate(recipe(workers=2), folder=tmp_path / "two", observer=Silent())
    assert other.clients == run.clients
    both = [load_file(result.folder / "model.safetensors") for result in (run, other)]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


@pytest.mark.parametrize(
    "changes",
    [{"constraint": "none"}, {"networks": "radiance"}, {"networks": "residual"}, {"parametrization": "none"}],
)
def test_every_variant_trains_and_learns(tmp_path, changes):
    result = fp.simulate(recipe(rounds=2, **changes), folder=tmp_path / "run", observer=Silent())
    assert result.rounds[-1]["train_loss"] < result.rounds[0]["train_loss"]


def test_the_black_box_is_no_smaller():
    own, box = SelfCalibrating(16), BlackBox()
    sizes = [sum(p.numel() for p in model.parameters()) for model in (own, box)]
    kept = [sum(p.numel() for p in model.camera.parameters()) for model in (own, box)]
    assert sizes[0] <= sizes[1] <= 1.1 * sizes[0]
    assert kept[1] >= 0.8 * kept[0]


def test_gradients_reach_every_part():
    task = build_task(recipe())
    model = build_model(recipe(), task)
    data = task.client_data("camera-1", 2)
    with torch.no_grad():
        for parameter in model.parameters():  # off the zeros that the last layers begin with
            parameter.add_(torch.randn(parameter.shape, generator=generator_for(0)), alpha=0.01)
    task.loss(model, task.prepare(data.train.batch(torch.arange(6)), generator_for(0))).backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not silent


def test_the_report_shows_responses_and_predictions(run):
    page = write(run).read_text()
    assert "Response curves" in page
    assert "camera-2" in page
    assert "gamma 2.2" in page
    assert "data:image/png;base64," in page


@pytest.mark.parametrize("ev", ["+2", "-2", "0"])
def test_a_photograph_at_another_exposure(run, tmp_path, capsys, monkeypatch, ev):
    source = take(tmp_path, "a.jpg", 0, size=(90, 121))
    code, out, err = call(capsys, monkeypatch, "apply", run.folder, source, tmp_path / "out.png", "--ev", ev)
    assert (code, err) == (0, "")
    assert "default response" in out
    before, after = (np.asarray(Image.open(path)).astype(float) for path in (source, tmp_path / "out.png"))
    assert before.shape == after.shape
    assert np.sign(round(after.mean() - before.mean())) == np.sign(float(ev))
    if ev == "0":  # nothing was asked for
        assert np.abs(after - before).max() <= 1


def test_a_clients_own_camera_and_another_white_balance(run, tmp_path, capsys, monkeypatch):
    source = take(tmp_path, "a.png", 0)
    words = ["apply", run.folder, source, tmp_path / "out.jpg", "--ev=-1.5", "--wb", "4000", "--client", "camera-2"]
    code, out, _ = call(capsys, monkeypatch, *words)
    assert (code, "own response" in out) == (0, True)
    before, after = (np.asarray(Image.open(path)).astype(float) for path in (source, tmp_path / "out.jpg"))
    assert after[..., 2].mean() / after[..., 0].mean() > before[..., 2].mean() / before[..., 0].mean()
    assert run.model("camera-2").camera.calibrated
    assert not run.model().camera.calibrated


def test_a_bracket_becomes_a_radiance_map(run, tmp_path, capsys, monkeypatch):
    for stops in (-2, 0, 2):
        take(tmp_path / "bracket", f"{stops}.png", stops, move=(stops, 0))
    code, out, _ = call(capsys, monkeypatch, "apply", run.folder, tmp_path / "bracket", tmp_path / "out.hdr")
    assert code == 0
    assert "calibrated on 3 exposures" in out
    light = read_radiance(tmp_path / "out.hdr")
    assert light.shape == (92, 128, 3)
    truth = (np.asarray(Image.open(tmp_path / "bracket" / "-2.png"))[4:] / 255) ** 2.2
    inside = (truth > 0.01).all(-1)
    assert np.corrcoef(np.log(light[inside]).ravel(), np.log(truth[inside]).ravel())[0, 1] > 0.97
    assert Image.open(tmp_path / "out.preview.png").size == (128, 92)
    assert "<svg" in (tmp_path / "out.response.svg").read_text()


def test_one_photograph_becomes_a_radiance_map_too(run, tmp_path, capsys, monkeypatch):
    take(tmp_path / "one", "a.png", 0, exif=False)
    for source in (tmp_path / "one", tmp_path / "one" / "a.png"):
        code, out, _ = call(capsys, monkeypatch, "apply", run.folder, source, tmp_path / "out.hdr")
        assert (code, "default response" in out) == (0, True)
        assert read_radiance(tmp_path / "out.hdr").shape == (96, 128, 3)


def test_a_run_becomes_an_onnx_model(run, tmp_path, capsys, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    code, out, _ = call(capsys, monkeypatch, "export", run.folder, tmp_path / "model.onnx")
    assert (code, "outputs within" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["{photo}"], "an OUTPUT"),
        (["{photo}", "{out}/a.txt"], "neither a picture"),
        (["{photo}", "{out}/a.png", "--ev", "much"], "must be a number"),
        (["{photo}", "{out}/a.png", "--ev", "99"], "outside its range"),
        (["{photo}", "{out}/a.png", "--wb", "900"], "1667 to 25000"),
        (["{photo}", "{out}/a.hdr", "--ev", "1"], "leave --ev and --wb out"),
        (["{out}", "{out}/a.png"], "written as .hdr"),
        (["{out}/no.png", "{out}/a.png"], "cannot be read"),
        (["{photo}", "{out}/a.png", "--client", "camera-3"], "no client 'camera-3'"),
        (["{photo}", "{out}/a.png", "--exposure", "1"], "unknown key"),
    ],
)
def test_nonsense_is_one_line(words, needle, run, tmp_path, capsys, monkeypatch):  # noqa: PLR0917
    photo = take(tmp_path, "photo.png", 0)
    words = [word.format(photo=photo, out=tmp_path) for word in words]
    code, _, err = call(capsys, monkeypatch, "apply", run.folder, *words)
    assert code in (1, 2)  # a file, an option
    assert needle in err
    assert err.count("\n") == 1


def test_white_balance_is_a_gauge_and_6500_is_none():
    assert torch.equal(white_balance(6500), torch.zeros(3))
    cool, warm = white_balance(3000), white_balance(12000)
    assert float(cool.sum()) == pytest.approx(0, abs=1e-5)
    assert cool[2] > 0 > cool[0]
    assert warm[0] > 0 > warm[2]
    with pytest.raises(ConfigError):
        white_balance(500)


def test_tone_mapping_keeps_the_order_of_lights_and_ends_in_range():
    light = np.exp(np.linspace(-8, 8, 50))[:, None, None] * np.ones((1, 2, 3))
    shown = tone_mapped(light)
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert (np.diff(shown[:, 0, 1]) >= 0).all()


def test_too_small_photographs_are_named(camera):
    with pytest.raises(DataError, match="48 x 48 pixels"):
        tiles([Scene("empty", [])])
    assert held_out(Camera("a", [Scene("b", camera.scenes[0].train)])) is None


def test_a_folder_of_cameras_is_a_federation(tmp_path):
    for name, title in (("north", "coffee"), ("south", "rocket")):
        for stops in (-2, -1, 0, 1):
            take(tmp_path / "data" / name / "scenes" / "yard", f"{stops}.png", stops, title=title)
    own = recipe(photographs="folder", data_dir=str(tmp_path / "data"), rounds=1)
    result = fp.simulate(own, folder=tmp_path / "run", observer=Silent())
    assert {row["client"] for row in result.clients} == {"north", "south"}
    assert "client_psnr" in result.rounds[0]
    with pytest.raises(DataError, match="needs data-dir"):
        build_task(recipe(photographs="folder")).population(2)
