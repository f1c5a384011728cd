"""Self-calibrating cameras: `python -m simulations.benchmarks.camera`.

Exposures that no camera was trained on, by physics between two networks, beside the black box of the same size, each
camera alone and the dense twin (grids/camera/); then, where the data folder has hdr/memorial, the real bracket: two
exposures trained on, the others predicted, and the radiance map beside Debevec and Malik's.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from client.tasks.camera import baselines
from client.tasks.camera.calibrate import calibrate, radiance
from client.tasks.camera.examples import held_out, tiles
from client.tasks.camera.files import read_bracket
from client.tasks.camera.network import BlackBox, SelfCalibrating
from client.tasks.camera.predict import predict, psnr, shown_error
from client.tasks.camera.radiance_file import read_radiance
from client.tasks.camera.scenes import Photograph, Scene
from fedpara.compare import Entry, read_grid, run_grid
from fedpara.data.files import data_roots
from fedpara.errors import DataError
from fedpara.run import Run
from fedpara.seeds import generator_for
from fedpara.task import Metrics, build_task

from .tables import grids, main

METHODS = ("FedPara", "dense", "without D_θ", "without E_θ", "each camera alone", "black box")
MEASURES = ("psnr", "psnr_darker", "psnr_clipped", "psnr_brighter", "response_rmse")
TRAINED = (("memorial0063.png", "memorial0066.png"), ("memorial0063.png", "memorial0065.png"))
STEPS = 600  # that a black box trains on two photographs


def built_in(output: Path, data_dir: str) -> list[Entry]:
    """The tables of the simulated cameras; the grid's runs."""
    grid = read_grid(grids("camera")["built-in"])
    entries = run_grid(grid, output / "built-in", data_dir=data_dir)
    values = {method: [entry.run for entry in entries if entry.method == method] for method in METHODS}
    print(
        "\nPSNR in dB of exposures held out; darker ones are told from clipped photographs, the clipped values apart\n"
    )
    seeds = [f"seed {seed}" for seed in grid.seeds]
    heads = ["method", "all", "darker", "clipped", "brighter", "response RMSE", *seeds]
    print(_row(heads))
    print(_row(["---"] * len(heads)))
    for method, runs in values.items():
        columns = [[run.rounds[-1].get(f"client_{name}") for run in runs] for name in MEASURES]
        print(_row([method, *(_spread(column) for column in columns), *(f"{value:.2f}" for value in columns[0])]))
    alone = [physics_alone(run) for run in values["FedPara"]]
    columns = [[own[name] for own in alone] for name in MEASURES]
    found = (f"{value:.2f}" for value in columns[0])
    print(_row(["FedPara's cameras, no network", *(_spread(column) for column in columns), *found]))
    print(_row(["gamma 2.2", *_gamma(values["FedPara"]), *["–"] * len(grid.seeds)]))
    print("\nCamera by camera, FedPara less each alone, dB\n")
    for entry, alone in zip(values["FedPara"], values["each camera alone"], strict=True):
        own, other = ({row["client"]: row["psnr"] for row in run.clients} for run in (entry, alone))
        print(f"seed {entry.recipe.seed}: " + ", ".join(f"{own[name] - other[name]:+.2f}" for name in sorted(own)))
    return entries


def physics_alone(run: Run) -> Mapping[str, float]:
    """What the cameras of a run give without its networks: means over the clients."""
    task, found = build_task(run.recipe), []
    for name in task.population(run.recipe.clients):
        model, held = run.model(name), task.client_data(name, run.recipe.clients).held_out
        assert isinstance(model, SelfCalibrating)
        assert held is not None
        bare = SelfCalibrating(len(model.camera.offset)).eval()  # its networks begin with nothing to add
        bare.camera = model.camera
        found.append(task.judge(bare, held, torch.device("cpu")))
    return Metrics.mean(found).values


def _gamma(runs: Sequence[Run]) -> list[str]:
    """Gamma scaling of the same photographs, in the order of MEASURES."""
    rows: list[list[float]] = []
    for run in runs:
        task = build_task(run.recipe)
        held = [held_out(task.camera(name, 8)) for name in task.population(8)]  # type: ignore[attr-defined]
        found = [(wanted.exposure, _plain(given, wanted)) for own in held for given, wanted in own.pairs]
        parts = [[v for _, v in found], [v for e, v in found if e < 0], [v for e, v in found if e > 0]]
        rows.append([statistics.fmean(part) for part in parts])
    whole, darker, brighter = (_spread(column) for column in zip(*rows, strict=True))
    return [whole, darker, "–", brighter, "–"]


def _plain(given: Photograph, wanted: Photograph) -> float:
    picture = baselines.gamma_scaling(given.pixels.float() / 255, wanted.exposure - given.exposure)
    return psnr(shown_error(picture, given, wanted))


def real(entries: Sequence[Entry], folder: Path) -> None:
    """The memorial church: two exposures trained on, the others predicted; radiance beside the reference map."""
    bracket = {photo.name: photo for photo in read_bracket(folder)}
    reference = torch.from_numpy(read_radiance(folder / "memorial.hdr")).permute(2, 0, 1)
    runs = {name: [entry.run for entry in entries if entry.method == name] for name in ("FedPara", "black box")}
    for names in TRAINED:
        two = [replace(bracket[name], row=row) for row, name in enumerate(names)]
        two.sort(key=lambda photo: photo.exposure)
        camera, inverse = calibrate([replace(photo, row=row) for row, photo in enumerate(two)]), None
        inverse = baselines.inverse_responses(two)
        alone = SelfCalibrating(2).eval()
        models: dict[str, list[nn.Module]] = {"camera and FedPara networks": [], "black box, federated, tuned": []}
        for run in runs["FedPara"]:
            model = run.model()
            model.camera = camera
            models["camera and FedPara networks"].append(model)
        alone.camera = camera
        models["camera alone"] = [alone]
        for seed, run in enumerate(runs["black box"]):
            models["black box, federated, tuned"].append(_fitted(run.model(), two, seed))
        models["black box"] = [_fitted(_new(seed), two, seed) for seed in range(3)]
        print(f"\nTrained on {' and '.join(photo.name for photo in two)}: PSNR in dB of the others\n")
        _predictions(list(bracket.values()), two, models, inverse)
        print("\nln radiance against the reference map: correlation by channel (mean), and over all channels\n")
        networks = [
            (f"FedPara networks, seed {n}", model) for n, model in enumerate(models["camera and FedPara networks"])
        ]
        for name, model in [*networks, ("camera alone", alone)]:
            assert isinstance(model, SelfCalibrating)
            with torch.no_grad():
                print(_row([name, *_agreement(radiance(model, two), reference, two)]))
        print(_row(["Debevec and Malik", *_agreement(baselines.radiance_map(two, inverse), reference, two)]))


def _predictions(
    bracket: Sequence[Photograph], two: Sequence[Photograph], models: dict[str, list[nn.Module]], inverse: np.ndarray
) -> None:
    wanted = [photo for photo in bracket if photo.name not in {own.name for own in two}]
    pairs = [(min(two, key=lambda photo: abs(photo.exposure - other.exposure)), other) for other in wanted]
    print(_row(["method", *(f"{b.exposure - a.exposure:+g} EV to {2**b.exposure:g} s" for a, b in pairs)]))
    print(_row(["---"] * (1 + len(pairs))))
    for name, own in models.items():
        cells = [
            _spread([psnr(shown_error(predict(model, a, b.exposure - a.exposure), a, b)) for model in own])
            for a, b in pairs
        ]
        print(_row([name, *cells]))
    plain = {
        "Debevec and Malik": [baselines.retaken(a.pixels, inverse, b.exposure - a.exposure) for a, b in pairs],
        "gamma 2.2": [baselines.gamma_scaling(a.pixels.float() / 255, b.exposure - a.exposure) for a, b in pairs],
    }
    for name, pictures in plain.items():
        errors = [psnr(shown_error(picture, *pair)) for picture, pair in zip(pictures, pairs, strict=True)]
        print(_row([name, *(f"{value:.2f}" for value in errors)]))


def _new(seed: int) -> BlackBox:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BlackBox()


def _fitted(model: nn.Module, two: Sequence[Photograph], seed: int) -> nn.Module:
    """A black box trained on the two photographs, each from the other, by Adam with a falling rate."""
    data, generator = tiles([Scene("bracket", two)]), generator_for(seed, "black box")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    model.train()
    for _ in range(STEPS):
        x, y, valid, exposures, _, _ = data.batch(torch.randint(len(data), (8,), generator=generator))
        picture = model(x.float() / 255, exposures[:, 1] - exposures[:, 0])
        loss = ((picture - y.float() / 255).square() * valid).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _agreement(log_radiance: Tensor, reference: Tensor, two: Sequence[Photograph]) -> list[str]:
    """Correlations with the reference map, where it and the photographs show the scene."""
    shown = (reference[0] > 0) | (reference[1] > 0)  # its border is pure blue
    for photo in two:
        shown = shown if photo.valid is None else shown & photo.valid
    a, b = log_radiance[:, shown].numpy(), np.log(reference[:, shown].clamp(min=1e-6).numpy())
    by_channel = [float(np.corrcoef(x, y)[0, 1]) for x, y in zip(a, b, strict=True)]
    return [f"{statistics.fmean(by_channel):.4f}", f"{np.corrcoef(a.ravel(), b.ravel())[0, 1]:.4f}"]


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    digits = 4 if max(known) < 1 else 2
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def run_all() -> None:
    """Bytes to within 0.5 dB of the dense twin, the cameras' tables, and the real bracket."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--output", type=Path, default=Path("runs") / "camera")
    parser.add_argument("--data-dir", default="")
    options, _ = parser.parse_known_args()
    main("camera", __doc__ or "")
    entries = built_in(options.output, options.data_dir)
    roots = data_roots(Path(options.data_dir) if options.data_dir else None)
    folder = next((found for root in roots if (found := root / "hdr" / "memorial").is_dir()), None)
    if folder is None:
        print("\nno hdr/memorial in the data folder: the real bracket is left out")
        return
    try:
        real(entries, folder)
    except DataError as error:
        print(f"\nthe real bracket is left out: {error}")


if __name__ == "__main__":
    run_all()
