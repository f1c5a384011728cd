"""The task as a user meets it: simulated, shown in the report, applied to videos, and fed nonsense."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import fedpara as fp
from client.tasks.motion import gallery, judging
from client.tasks.motion.video import Reader, Writer
from fedpara.app import find_recipe
from fedpara.cli import main
from fedpara.config import read_recipe
from fedpara.seeds import generator_for
from fedpara.task import build_model, build_task
from simulations.benchmarks import motion as benchmark
from tests.conftest import Silent

TINY = {"rounds": 2, "clients": 2, "cohort": 2, "samples": 16, "crop": 32, "workers": 1}


def simulate(folder, **changes):
    recipe = read_recipe(find_recipe("motion"), TINY | changes)
    return fp.simulate(recipe, folder=folder, observer=Silent())


@pytest.fixture(scope="module")
def small():
    """Judging on few and small samples, for what only asks whether it is done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "CROP", 48)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, small):
    return simulate(tmp_path_factory.mktemp("runs") / "motion")


def moving(folder, count=5, height=40, width=60):
    """A bright square that goes right by 0.2 pixels a frame."""
    columns = torch.arange(width)[None] - 20.5
    rows = torch.arange(height)[:, None]
    for place in range(count):
        cover = (8 - (columns - 0.2 * place).abs()).clamp(0, 1) * ((rows > 10) & (rows < 30))
        pixels = (40 + 180 * cover).to(torch.uint8).expand(3, -1, -1)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(folder / f"{place:06d}.png")
    return folder


@pytest.fixture
def call(capsys, monkeypatch):
    """Calls the command line; exit code and both outputs."""

    def called(*words):
        monkeypatch.setattr("sys.argv", ["fedpara", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called


def test_it_trains_end_to_end_and_sends_less_than_its_dense_twin(run):
    last = run.rounds[-1]
    assert last["dropped"] == []
    assert 0.3 < last["ssim"] <= 1
    assert 0.3 < last["client_ssim"] <= 1
    assert last["train_loss"] < 1.02 * run.rounds[0]["train_loss"]
    assert 3 * last["total"] < last["dense_total"]


def test_a_step_learns():
    recipe = read_recipe(find_recipe("motion"), TINY)
    task = build_task(recipe)
    data, model = task.client_data("coffee", 2), build_model(recipe, task)
    optimizer = task.optimizer(model, recipe.training, 0.004)
    batch = task.prepare(data.train.batch(torch.arange(6)), generator_for(0, "test"))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_every_step_is_a_fresh_sample_and_follows_from_the_seed():
    task = build_task(read_recipe(find_recipe("motion"), TINY))
    places = task.client_data("coffee", 2).train.batch(torch.arange(4))
    first, second = (task.prepare(places, generator_for(0, "round", number)) for number in (1, 2))
    again = build_task(read_recipe(find_recipe("motion"), TINY))
    other = again.client_data("astronaut", 2).train.batch(torch.arange(4))
    again.prepare(other, generator_for(0, "x"))
    same = again.prepare(again.client_data("coffee", 2).train.batch(torch.arange(4)), generator_for(0, "round", 1))
    assert all(torch.equal(x, y) for x, y in zip(first, same, strict=True))
    assert not torch.equal(first[0], second[0])
    assert [tuple(part.shape) for part in first] == [(4, 3, 32, 32)] * 5 + [(4,)]


def test_clients_differ_in_images_and_noise():
    task = build_task(read_recipe(find_recipe("motion")))
    for client in task.population(6):
        task.client_data(client, 6)
    assert [round(own.noise, 2) for own in task._collections] == [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]


def test_the_judge_is_the_same_with_every_seed_and_an_ideal_magnifier_gets_one(small):
    first, second = (build_task(read_recipe(find_recipe("motion"), {"seed": seed})) for seed in (1, 2))
    frames, again = first.server_data().frames, second.server_data().frames
    assert torch.equal(frames.b, again.b)
    judged = first.server_data()
    places = iter(torch.arange(len(judged)).split(judging.AT_ONCE))
    alike, apart = judging.score(lambda *_: frames.truth[next(places)], judged, torch.device("cpu"))
    assert torch.allclose(alike, torch.ones(len(judged)))
    assert apart.max() == 0
    sizes = (frames.alpha + 1) * judged.motion
    assert torch.allclose(sizes, torch.full_like(sizes, 5.0))


@pytest.mark.slow
def test_workers_give_the_same_bits(tmp_path, run):
    again = simulate(tmp_path / "run", workers=2)
    assert [row["ssim"] for row in again.rounds] == [row["ssim"] for row in run.rounds]
    first, second = (result.model().state_dict() for result in (run, again))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_folders_of_owners_are_trained_on(tmp_path, small):
    for place, owner in enumerate(("north", "south")):
        generator = torch.Generator().manual_seed(place)
        own = tmp_path / "data" / "clips" / owner
        own.mkdir(parents=True)
        for number in range(1 + 4 * place):
            pixels = torch.randint(256, (50, 70, 3), generator=generator).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(own / f"{number}.png")
    run = simulate(tmp_path / "run", dataset="folder", data_dir=str(tmp_path / "data"), rounds=1)
    assert run.rounds[0]["dropped"] == []
    assert sorted(run.rounds[0]["cohort"]) == ["north", "south"]


def test_the_report_shows_figures_and_frames(run, tmp_path, monkeypatch, small):
    monkeypatch.setattr(gallery, "SCENES", 1)
    monkeypatch.setattr(gallery, "SIZES", (0.1, 1.0))
    figures, frames = build_task(run.recipe).exhibits(run.model(), tmp_path)
    header, *rows = figures.rows
    assert header == ["method", "noise", "0.1 px", "1 px"]
    assert {row[0] for row in rows} == {"no magnification", "linear Eulerian", "phase-based", "this network"}
    assert [chart.title for chart in figures.charts] == ["Noise 0", "Noise 0.1", "Noise 0.3"]
    shown = {row[0]: [float(cell) for cell in row[2:]] for row in rows if row[1] == "0.3"}
    for name, line in figures.charts[2].series.items():
        assert [y for _, y in line] == pytest.approx(shown[name], abs=6e-4)
    for row in frames.pictures.values():
        assert [name for name, _ in row[:3]] == ["given", "truth", "this network"]
        assert all(pixels.shape == (3, judging.CROP, judging.CROP) for _, pixels in row)


def test_the_benchmark_judges_the_common_network_and_each_clients_own(run, tmp_path, monkeypatch, small):
    alone = simulate(tmp_path / "alone", parametrization="none", local=["all"])
    assert [len(list(benchmark.models(own))) for own in (run, alone)] == [1, 2]
    one, two = benchmark.models(alone)
    assert not torch.equal(one.shape.weight, two.shape.weight)
    text = benchmark.tables({"none": [[0.5] * 18], "ours": [[0.5] * 18, [0.7] * 18]})
    assert text.count("| ours | 0.600 ± 0.141 |") == 3
    entries = [benchmark.Entry(name, 0, own) for name, own in (("together", run), ("alone", alone))]
    assert benchmark.at_rest(entries) == {"together": [pytest.approx(1)], "alone": [pytest.approx(1)]}


@pytest.mark.parametrize("changes", [{}, {"local": ["all"]}], ids=["together", "alone"])
def test_the_benchmark_trains_owners_on_as_a_run_does_that_asks_for_it(changes, tmp_path, small):
    found = []
    for epochs in (0, 1):
        own = simulate(tmp_path / str(epochs), final_evaluation=True, fine_tune=epochs, downlink="fp32", **changes)
        found.append(own.rounds[-1]["client_ssim"])
    assert benchmark.alone(own) == pytest.approx(found, abs=1e-6)
    assert found[0] != found[1]
    assert f"| ours | at each owner alone | {found[1]:.4f} |" in benchmark.alone_table(
        [benchmark.Entry("ours", 0, own)]
    )


@pytest.mark.parametrize("options", [(), ("--mode", "dynamic"), ("--mode", "temporal", "--low", 0.4, "--high", 3)])
def test_a_video_is_magnified(run, tmp_path, options, call):
    source = moving(tmp_path / "in")
    words = ("apply", run.folder, source, tmp_path / "out.mp4", "--alpha", 10, "--slice-at", 28, *options)
    code, out, err = call(*words)
    assert code == 0, err
    assert "5 frames of 60×40 at 30 a second" in out
    frames = list(Reader(tmp_path / "out.mp4"))
    assert [tuple(frame.shape) for frame in frames] == [(3, 40, 60)] * 5
    assert Image.open(tmp_path / "out-slice.png").size == (5, 40 + 4 + 40)


def test_alpha_zero_gives_the_video_back_and_compare_shows_both(run, tmp_path, call):
    source = moving(tmp_path / "in")
    code, _, err = call("apply", run.folder, source, tmp_path / "same", "--alpha", 0)
    assert code == 0, err
    for before, after in zip(Reader(source), Reader(tmp_path / "same"), strict=True):
        assert torch.equal(before, after)
    words = ("apply", run.folder, source, tmp_path / "both", "--alpha", 30, "--compare", "true")
    assert call(*words)[0] == 0
    *_, before = Reader(source)
    *_, both = Reader(tmp_path / "both")
    assert torch.equal(both[:, :, :60], before)
    assert not torch.equal(both[:, :, 60:], before)


def test_the_options_are_listed_without_an_input(run, call):
    code, out, _ = call("apply", run.folder)
    assert code == 0
    for word in ("--alpha", "--mode", "--low", "--slice-at", "INPUT is a video file or a folder"):
        assert word in out


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        ((), "give a video file or a folder of frames, and where the result goes"),
        (("{in}", "{out}", "--alpha", "-1"), "outside its range: >= 0 and <= 1000"),
        (("{in}", "{out}", "--alpha", "nan"), "outside its range"),
        (("{in}", "{out}", "--alpha", "inf"), "outside its range"),
        (("{in}", "{one}"), "holds files already: name a new folder"),
        (("{in}", "{out}", "--mode", "statik"), "did you mean 'static'"),
        (("{in}", "{out}", "--mode", "temporal"), "a band needs 0 < low < high < 15"),
        (("{in}", "{out}", "--mode", "temporal", "--low", "3", "--high", "20"), "0 < low < high < 15"),
        (("{in}", "{out}", "--slice-at", "60"), "columns 0 to 59"),
        (("{in}", "{in}"), "is the input: name another output"),
        (("{in}", "{out}.gif"), "is no video file"),
        (("{one}", "{out}"), "holds one frame only: motion needs two or more"),
        (("{empty}", "{out}"), "holds no images"),
        (("{broken}", "{out}"), "cannot be read as a video"),
        (("nowhere.mp4", "{out}"), "nothing is at nowhere.mp4"),
    ],
)
def test_nonsense_is_one_line(run, tmp_path, words, needle, call):
    places = {"in": moving(tmp_path / "in"), "one": moving(tmp_path / "one", count=1), "out": tmp_path / "out"}
    places |= {"empty": tmp_path / "empty", "broken": tmp_path / "broken.mp4"}
    places["empty"].mkdir()
    places["broken"].write_bytes(b"no video")
    given = [word.format(**places) for word in words] or ["--alpha", "2"]
    code, _, err = call("apply", run.folder, *given)
    assert code in (1, 2)  # a file, an option
    assert needle in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "needle"),
    [
        ({"crop": 50}, "multiple of 4: 48 is"),
        ({"objects": [5, 2]}, "fewest and the most"),
        ({"objects": [3]}, "fewest and the most"),
        ({"motion.model": "heavy"}, "not one of light, paper"),
        ({"magnified": 0}, "outside its range"),
        ({"dataset": "movies"}, "not one of photographs, folder"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, needle):
    with pytest.raises(fp.ConfigError, match=needle):
        read_recipe(find_recipe("motion"), changes)


def test_another_tasks_network_magnifies_nothing(tmp_path):
    task = build_task(read_recipe(find_recipe("motion")))
    with pytest.raises(fp.ConfigError, match="a Linear magnifies nothing"):
        task.apply(torch.nn.Linear(1, 1), tmp_path, tmp_path / "out", task.Apply())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a program's memory is read from /proc")
def test_a_long_video_takes_no_more_memory_than_a_short_one(tmp_path):
    """Peak memory of two processes, one with four times the frames of the other.

    The short one is longer than what a video's encoder looks ahead, some fifty frames that it holds itself.
    """
    code = (
        "import re, sys, torch\n"
        "from pathlib import Path\n"
        "from client.tasks.motion.footage import Apply, magnify_file\n"
        "from client.tasks.motion.network import build\n"
        "torch.set_num_threads(1)\n"
        "how = Apply(mode='temporal', low=0.4, high=3, slice_at=5, device='cpu')\n"
        "magnify_file(build('light').eval(), Path(sys.argv[1]), Path(sys.argv[2]), how)\n"
        # The peak of this program alone: rusage's would be at least that of the process that it was forked from.
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    peaks = []
    for count in (60, 240):
        source, generator = tmp_path / f"{count}.mp4", torch.Generator().manual_seed(0)
        with Writer(source, 30) as writer:
            for _ in range(count):
                writer.write(torch.randint(256, (3, 160, 240), generator=generator).to(torch.uint8))
        words = [sys.executable, "-c", code, str(source), str(tmp_path / f"out{count}.mp4")]
        peaks.append(int(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] < 1.05 * peaks[0]
