"""Self-calibrating cameras: what a photograph would have been at another exposure, by physics between two networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpara.config import Training, setting
from fedpara.errors import DataError, FedparaError
from fedpara.task import Batch, ClientData, Examples, Exhibit, Metrics, Task, register_task

from . import response
from .examples import HeldOut, held_out, tiles
from .exhibits import exhibits
from .files import clients as cameras_of
from .files import read_camera
from .image_formation import View, trusted
from .network import BlackBox, SelfCalibrating
from .predict import predict, psnr, shown, shown_error
from .scenes import Camera, built_in
from .synthetic import reexposed
from .use import radiance_map, retake_photograph


@dataclass(frozen=True)
class Options:
    """The recipe's [camera] table."""

    photographs: str = setting(
        "built-in", "built-in: simulated cameras; folder: CLIENT/scenes/SCENE/*.jpg", choices=("built-in", "folder")
    )
    constraint: str = setting("camera", "what stands between the networks", choices=("camera", "none"))
    networks: str = setting(
        "both", "which networks stand beside the camera", choices=("both", "radiance", "residual", "none")
    )
    width: int = setting(64, "channels of the networks' context", low=4)
    table: int = setting(16, "photographs whose exposure and white balance a camera calibrates one by one", low=1)
    size: int = setting(384, "longer side in pixels that photographs of a folder are brought to for training", low=64)
    responses: str = setting(
        "auto",
        "random cameras' responses: parametric, measured (hdr/emor.npz), or auto: measured where that file is",
        choices=("auto", "parametric", "measured"),
    )
    synthetic: float = setting(1.0, "weight of the loss on re-exposed synthetic scenes; 0: none are made", low=0)
    camera_rate: float = setting(15.0, "learning rate of the camera's own quantities, as a multiple of lr", above=0)


@dataclass(frozen=True)
class Apply:
    """What fedpara apply takes besides a photograph or a folder of one bracket."""

    ev: float = setting(0.0, "stops of exposure more than the photograph had: 2, or -1.5", low=-12, high=12)
    wb: float = setting(
        0.0, "white balance in kelvin: 5000 is daylight, 6500 as it was; 0: as it was", low=0, high=40000
    )


@register_task("camera")
class Cameras(Task):
    """Self-calibrating cameras: exposures not taken, high dynamic range; each client is a camera."""

    Options = Options
    Apply = Apply
    options: Options
    measure = "psnr"

    @cached_property
    def measured(self) -> Path | None:
        """The measured response basis, where it is wanted and there. Raises DataError where it must be there."""
        if self.options.responses == "parametric":
            return None
        found = response.measured_basis(self.data_dir)
        if found is None and self.options.responses == "measured":
            raise DataError(
                "responses = 'measured' needs hdr/emor.npz in the data folder: put it there, or take 'auto'"
            )
        return found

    def model(self) -> nn.Module:
        if self.options.constraint == "none":
            return BlackBox(self.options.width)
        return SelfCalibrating(self.options.table, self.options.width, self.options.networks)

    @property
    def folder(self) -> Path:
        """Where photographs of the clients' own lie."""
        if not self.data_dir:
            raise DataError("photographs = 'folder' needs data-dir: the folder of CAMERA/scenes/SCENE/*.jpg")
        return Path(self.data_dir).expanduser()

    def population(self, clients: int) -> Sequence[str]:
        if self.options.photographs == "folder":
            return cameras_of(self.folder)[:clients]
        return [f"camera-{n + 1}" for n in range(clients)]

    @lru_cache(maxsize=64)  # noqa: B019  a task lives as long as its process
    def camera(self, client: str, clients: int) -> Camera:
        """A client's photographs."""
        if self.options.photographs == "folder":
            return read_camera(self.folder, client, self.options.size)
        return built_in(list(self.population(clients)).index(client), client, self.seed, self.measured)

    def client_data(self, client: str, clients: int) -> ClientData:
        camera = self.camera(client, clients)
        return ClientData(tiles(camera.scenes), held_out(camera))

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Pixels in [0, 1]; and of every second example a synthetic scene through a random camera."""
        x, y, *more = batch
        x, y = x.float() / 255, y.float() / 255
        if not self.options.synthetic or self.options.constraint == "none":
            return x, y, *more
        given, wanted, first, second = reexposed(x[::2], more[-1][::2, :1], generator, self.measured)
        return x, y, *more, given, wanted, first.response, first.log_gain, second.log_gain

    def optimizer(self, model: nn.Module, training: Training, lr: float) -> torch.optim.Optimizer:
        """Adam; the camera's quantities, few and far from where they begin, at a larger rate."""
        own = [p for name, p in model.named_parameters() if name.startswith("camera.") and p.requires_grad]
        known = {id(parameter) for parameter in own}
        common = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        rate = self.options.camera_rate if self.options.constraint == "camera" else 1.0
        return torch.optim.Adam([{"params": common}, {"params": own, "lr": rate * lr}], lr=lr)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Squared errors of three pictures, and the camera's regulariser.

        Of the camera alone, between pixels that physics can be trusted on both sides: this fits the camera's own
        quantities, and nothing else does, so that no network can take over what physics means. Of the whole, on half
        of the client's pairs; and of the whole on synthetic scenes, through the random cameras' quantities.
        """
        x, y, valid, exposures, rows, radii, *synthetic = batch
        weight = valid.to(x.dtype).expand_as(x)
        if isinstance(model, BlackBox):
            return _mean((model(x, exposures[:, 1] - exposures[:, 0]) - y).square(), weight)
        assert isinstance(model, SelfCalibrating)
        camera = model.camera
        view = camera.view(exposures[:, 0], rows[:, 0], radii[:, :1])
        target = camera.view(exposures[:, 1], rows[:, 1], radii[:, 1:])
        formed = camera(camera.develop(x, view), target)
        loss = _mean((formed - y).square(), weight * trusted(x) * trusted(y)) + camera.regulariser()
        if not synthetic:
            return loss + _mean((model.image(x, view.fixed(), target.fixed()) - y).square(), weight)
        # The networks see half of the pairs, and synthetic scenes made of the others.
        given, wanted, curve, first, second = synthetic
        half = slice(len(given), None) if len(x) > 1 else slice(0, 1)
        view, target = view.fixed(half), target.fixed(half)
        picture = model.image(
            torch.cat([x[half], given]), view.beside(View(curve, first)), target.beside(View(curve, second))
        )
        own, made = picture.split([len(view.response), len(given)])
        loss = loss + _mean((own - y[half]).square(), weight[half])
        return loss + self.options.synthetic * F.mse_loss(made, wanted)

    def evaluate(self, model: nn.Module, examples: Examples, device: torch.device) -> Metrics:
        """Mean PSNR in dB of exposures held out: of scenes that were never trained on, where there are any.

        Apart where they are darker (told from clipped photographs) and brighter, of darker ones over the values alone
        that were clipped in what is given, and for the scenes trained on.
        """
        assert isinstance(examples, HeldOut)
        unseen = any(given.row < 0 for given, _ in examples.pairs)
        found: dict[str, list[float]] = {"psnr": [], "psnr_darker": [], "psnr_brighter": []}
        found |= {"psnr_clipped": [], "psnr_own": [], "loss": []}
        for given, wanted in examples.pairs:
            picture = predict(model, given, wanted.exposure - given.exposure, device)
            error = shown_error(picture, given, wanted)
            if given.row >= 0:
                found["psnr_own"].append(psnr(error))
            if given.row < 0 or not unseen:
                found["psnr"].append(psnr(error))
                darker = wanted.exposure < given.exposure
                found["psnr_darker" if darker else "psnr_brighter"].append(psnr(error))
                clipped = shown(given.pixels, given, wanted) >= CLIPPED
                if darker and clipped.any():
                    found["psnr_clipped"].append(psnr(error[clipped]))
            found["loss"].append(float(error.mean()))
        values = {name: sum(own) / len(own) for name, own in found.items() if own}
        if "response" in examples.truth and isinstance(model, SelfCalibrating):
            values["response_rmse"] = response.rmse(model.camera.values()["response"], examples.truth["response"])
        return Metrics(len(examples), values)

    def example_input(self) -> Batch:
        """Two photographs and what they are to be brightened by."""
        photos = self.camera("camera-1", 1).scenes[0].train[:2] if self.options.photographs == "built-in" else ()
        pixels = torch.stack([photo.pixels for photo in photos]).float() / 255 if photos else torch.rand(2, 3, 48, 64)
        return pixels, torch.tensor([1.0, -1.0])

    def apply(self, model: nn.Module, source: Path | None, output: Path | None, options: Apply) -> Sequence[str]:
        """INPUT is a photograph, or a folder with the exposures of one view; OUTPUT a picture or a radiance map, .hdr.

        A photograph gives a picture at --ev stops more exposure and white balance --wb, or a radiance map; a folder
        gives a radiance map, with a tone-mapped preview and a plot of the response curve beside it. The camera is that
        of --client, else one calibrated on the folder's exposures (their EXIF, or exposure.csv), else x^(1/2.2).
        """
        if source is None or output is None:
            raise DataError(
                "give an INPUT (a photograph, or a folder of one bracket) and an OUTPUT (.png, .jpg or .hdr)"
            )
        if source.is_dir() or output.suffix.lower() == ".hdr":
            if options.ev or options.wb:
                raise DataError("a radiance map has no exposure or white balance: leave --ev and --wb out")
            return radiance_map(model, source, output)
        return retake_photograph(model, source, output, options.ev, options.wb)

    def exhibits(self, model: nn.Module, folder: Path) -> Sequence[Exhibit]:
        """Response curves learnt against true, exposures predicted, and figures by camera, of the run at hand."""
        names = list(self.population(MOST_SHOWN))[:MOST_SHOWN]
        shown = {name: (self._own(name, model), self.camera(name, MOST_SHOWN)) for name in names}
        return exhibits({name: pair for name, pair in shown.items() if pair[0] is not None})

    def _own(self, client: str, model: nn.Module) -> nn.Module | None:
        """A client's own model, None where the run has none of it; the common one where no run is at hand."""
        if self.personal is None:
            return model
        try:
            return self.personal(client)
        except FedparaError:
            return None


MOST_SHOWN = 8  # cameras in the report
CLIPPED = 254  # of 255, from which a value says no more than that there was more light


def _mean(squared_error: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean over pixels and channels."""
    return (squared_error * weight).sum() / weight.sum().clamp(min=1.0)
