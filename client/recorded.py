"""Local steps that are recorded once and replayed for every client: CUDA graphs.

On a GPU, launching the hundreds of kernels of a small step takes longer than running them. A recorded step is launched
as one: its batch is copied into fixed places, and the parameters of whichever client trains lie in fixed places too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fedpara.config import Training
from fedpara.task import Batch

from .methods import Method
from .muon import Muon, Together
from .turns import TURNS, own_stream

log = logging.getLogger("fedpara")
Step = Callable[[Batch], Tensor]
Capture = Callable[[Callable[[], Tensor], torch.Generator, Any], tuple[Callable[[], None], Tensor]]
WARM_UP = 3  # steps before recording: libraries choose their kernels, the optimiser makes its state
TURN = 8  # steps that a client gives the device before others have their turn: enough to be busy with meanwhile


def capture_graph(
    step: Callable[[], Tensor], draws: torch.Generator, stream: torch.cuda.Stream
) -> tuple[Callable[[], None], Tensor]:
    """A step as a CUDA graph, recorded on this stream: what replays it, and where its loss will lie.

    What it draws from this generator goes on from replay to replay. Graphs recorded on one stream share the scratch
    memory of their matrix products (PyTorch issue 193402): those that run side by side need streams of their own.
    """
    graph = torch.cuda.CUDAGraph()
    if draws.device.type == "cuda":
        graph.register_generator_state(draws)
    with torch.cuda.graph(graph, stream=stream):
        loss = step()
    return graph.replay, loss


class Recorder:
    """Keeps a model's optimiser and its recorded steps, one for each shape of batch, for all clients served with it.

    A client begins with the optimiser's state at zero, as a fresh one's is, so that it trains as `Stepper` alone would
    train it. A step that cannot be recorded is taken operation by operation from then on, with a warning.

    After some recorded steps, other clients of this process have their turn: their steps run beside them. Not where
    these draw random numbers (dropout): every graph of a process finds the place in that sequence in one memory.
    """

    def __init__(self, capture: Capture = capture_graph) -> None:
        self._capture = capture
        self._training: Training | None = None
        self._works = True
        self._alone = False  # it draws torch's own random numbers on the device
        self._generator: torch.Generator | None = None
        self._stream: torch.cuda.Stream | None = None
        self._steps = 0  # replayed so far

    @staticmethod
    def suits(method: Method | None, training: Training, shares: Sequence[float]) -> bool:
        """Whether a step is the same operations every time, with nothing that the host must look at."""
        plain = method is None or not method.corrects
        return plain and not shares and not training.seconds and training.precision != "fp16"

    def generator(self, device: torch.device) -> torch.Generator:
        """Where recorded steps draw from on this device, for one client after another: seed it anew for each."""
        if self._generator is None:
            self._generator = torch.Generator(device)
        return self._generator

    def begin(
        self,
        model: nn.Module,
        training: Training,
        lr: float,
        make: Callable[[], tuple[torch.optim.Optimizer, Step]],
        *,
        prepare: Callable[[Batch], Batch],
        draws: torch.Generator,
    ) -> Step:
        """Steps for the next client, at this learning rate; ``make`` builds what is kept, at the same rate.

        A step begins with ``prepare``, which draws from ``draws``.
        """
        self._prepare, self._draws_from = prepare, draws
        if training != self._training:
            self._training, self._model = training, model
            self._optimizer, self._train = make()
            self._recorded: dict[Any, tuple[list[Tensor], Callable[[], None], Tensor]] = {}
            self._rates = [group["lr"] / lr for group in self._optimizer.param_groups]
            _with_rate_on_device(self._optimizer)
        for own in self._state():
            own.zero_()
        self._set_rate(lr)
        return self._take

    def _step(self, batch: Batch) -> Tensor:
        return self._train(self._prepare(batch))

    def _take(self, batch: Batch) -> Tensor:
        """A step; its loss, which the next step of this shape overwrites."""
        key = tuple((part.shape, part.dtype, part.stride()) for part in batch)
        if self._works and key not in self._recorded:
            self._record(key, batch)
        if not self._works:
            return self._step(batch)
        inputs, replay, loss = self._recorded[key]
        for own, part in zip(inputs, batch, strict=True):
            own.copy_(part)
        replay()
        self._steps += 1
        if not self._alone and self._steps % TURN == 0:
            TURNS.pass_on()
        return loss

    def wait(self, device: torch.device) -> None:
        """Until the device has worked off what this client gave it."""
        if device.type != "cuda":
            return
        with nullcontext() if self._alone else TURNS.away():
            torch.cuda.current_stream(device).synchronize()

    def _record(self, key: Any, batch: Batch) -> None:
        inputs = [part.clone() for part in batch]
        try:
            if self._stream is None and inputs[0].device.type == "cuda":
                self._stream = own_stream(inputs[0].device, self)
            self._warm_up(tuple(inputs))
            replay, loss = self._capture(lambda: self._step(tuple(inputs)), self._draws_from, self._stream)
            self._recorded[key] = inputs, replay, loss
        except RuntimeError as error:  # a loss that asks for values on the host, or an operation that has no graph
            self._works = False
            self._recorded.clear()
            log.warning("steps are not recorded, and slower for it: %s", str(error).partition("\n")[0])

    def _warm_up(self, batch: Batch) -> None:
        """A few steps that leave no trace: weights, buffers, the optimiser's state and random numbers as before."""
        tensors = [*self._model.state_dict().values()]
        before = [own.clone() for own in tensors]
        held = {id(own): own.clone() for own in self._state()}
        device, place = batch[0].device, self._draws_from.get_state()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                drawn = _drawn(device)
                _beside(self._stream, lambda: [self._step(batch) for _ in range(WARM_UP)])
                self._alone = self._alone or _drawn(device) != drawn
            finally:
                self._draws_from.set_state(place)
                for own, value in zip(tensors, before, strict=True):
                    own.copy_(value)
                for own in self._state():  # zero where there was none: what a first step makes of it is the same
                    own.copy_(held[id(own)]) if id(own) in held else own.zero_()

    def _state(self) -> list[Tensor]:
        """What the optimiser remembers."""
        return [value for own in self._optimizer.state.values() for value in own.values() if isinstance(value, Tensor)]

    def _set_rate(self, lr: float) -> None:
        for group, share in zip(self._optimizer.param_groups, self._rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(share * lr)
            elif group["lr"] != share * lr:
                group["lr"] = share * lr
                self._recorded.clear()  # the number is part of what was recorded


def _with_rate_on_device(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimiser on a GPU read its learning rate there, so that a recorded step can follow its decay."""
    for part in optimizer.parts if isinstance(optimizer, Together) else (optimizer,):
        if not isinstance(part, torch.optim.SGD | torch.optim.Adam | torch.optim.AdamW | Muon):
            continue
        for group in part.param_groups:
            device = group["params"][0].device if group["params"] else torch.device("cpu")
            if device.type == "cuda":
                group["lr"] = torch.tensor(group["lr"], device=device)
                if "fused" in group:
                    group["fused"], group["foreach"] = True, False
                if "capturable" in group:  # Adam would not be recorded without
                    group["capturable"] = True


def _drawn(device: torch.device) -> list[int]:
    """How far the device's own sequence of random numbers has been used."""
    return torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else []


def _beside(stream: torch.cuda.Stream | None, run: Callable[[], object]) -> None:
    """Run on another stream, as CUDA wants it before a recording."""
    if stream is None:
        run()
        return
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream(stream.device).wait_stream(stream)
