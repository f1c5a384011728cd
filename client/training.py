"""Local training of one client in one round."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn

from fedpara.config import Training
from fedpara.errors import ConfigError, DataError, DeviceError
from fedpara.layers import factorised_weights
from fedpara.lean import spare_compiler
from fedpara.sharing import local_names
from fedpara.slices import at_share, drop_common_
from fedpara.task import Batch, ClientData, Metrics, Task

from .compiled import compiled_loss
from .methods import Method
from .muon import Together, take_over
from .projected import DenseSteps
from .recorded import Recorder

log = logging.getLogger("fedpara")
spare_compiler()  # of this process, which trains as its first thing and perhaps its only one


def train(
    task: Task,
    model: nn.Module,
    data: ClientData,
    training: Training,
    *,
    method: Method | None = None,
    round: int,
    generator: torch.Generator,
    device: torch.device,
    shares: Sequence[float] = (),
    recorder: Recorder | None = None,
) -> Metrics:
    """Train ``model`` in place for the round's local epochs; the mean loss, over the client's examples.

    With a limit in seconds, training ends after it, with a step at least; "work" then says what share was done.

    Order, augmentation and dropout come from ``generator`` and from torch's global generator seeded by it, so that a
    client's result depends on the recipe's seed, the round and the client's name alone.

    With ``shares`` of the ranks, each step is at all of them, see `Stepper`. With a ``recorder``, steps are replayed
    where that can be. Nothing is fetched from the device before the end.
    """
    count = len(data.train)
    if count == 0:
        raise DataError("this client holds no training examples: give it data or leave it out")
    model.train()
    lr = training.lr * training.lr_decay ** (round - 1)

    twin = _twin(model, method) if training.project else None
    recording = recorder if recorder and not twin and recorder.suits(method, training, shares) else None
    where = getattr(data.train, "device", None)
    recordable = task.prepare_recordable and where is not None and where.type == device.type
    draws = _draws(generator, device, recording) if recordable else generator

    def prepare(batch: Batch) -> Batch:
        return placed(task.prepare(batch, draws), device)

    def make() -> tuple[torch.optim.Optimizer, Stepper]:
        trained = twin.dense if twin else model
        optimizer = _optimizer(task, trained, training, lr, twin.weights if twin else None)
        optimizer = twin.by(optimizer) if twin else optimizer
        return optimizer, Stepper(task, trained, optimizer, method=method, training=training, device=device)

    step: Callable[[Batch], torch.Tensor]
    optimizer, inside = None, bool(recording) and recordable
    if recording:
        first = prepare if inside else tuple
        step = recording.begin(model, training, lr, make, prepare=first, draws=draws)
    else:
        optimizer, stepper = make()
        step = partial(stepper, shares=shares)
    total, steps = torch.zeros((), device=device), 0
    end = time.monotonic() + training.seconds if training.seconds else math.inf
    with on(device), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _seed(int(torch.randint(2**62, (), generator=generator)), device)
        for _ in range(training.epochs):
            for indices in batches(count, training.batch_size, generator, where):
                if steps and time.monotonic() > end:
                    break
                batch = data.train.batch(indices)
                total += step(batch if inside else prepare(batch))
                steps += 1
        if recording:
            recording.wait(device)
    if twin:
        twin.finish()
    if method and optimizer:
        method.finish(optimizer)
    values = {"loss": float(total) / steps}
    if training.seconds:
        values["work"] = steps / (training.epochs * len(batches(count, training.batch_size, generator)))
    return Metrics(count, values)


def _twin(model: nn.Module, method: Method | None) -> DenseSteps | None:
    """The dense network whose steps this model's factors follow; None where it has none."""
    if not next(factorised_weights(model), None):
        return None
    if method and method.corrects:
        raise ConfigError(
            f"{type(method).__name__} corrects the factors' gradients, and project = true has none: leave one out"
        )
    return DenseSteps(model)


def _draws(generator: torch.Generator, device: torch.device, recording: Recorder | None) -> torch.Generator:
    """Where batches prepared on the device draw from: this generator; on a GPU one of its own, seeded by it."""
    if device.type != "cuda":
        return generator
    own = recording.generator(device) if recording else torch.Generator(device)
    return own.manual_seed(int(torch.randint(2**62, (), generator=generator)))


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the one that streams and recordings are made on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _seed(seed: int, device: torch.device) -> None:
    """Seed torch's global generators, on a CPU the CPU's alone.

    torch.manual_seed formats and keeps a traceback for each kind of accelerator not in use: three for every client.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _optimizer(
    task: Task, model: nn.Module, training: Training, lr: float, factors: list[nn.Parameter] | None = None
) -> torch.optim.Optimizer:
    """The task's optimiser, Muon beside it; factors, and what stays with the client, at rates of their own.

    `factors`: what counts as such, where these are not the model's.
    """
    parts = [task.optimizer(model, training, lr)]
    if training.muon_lr:
        muon = take_over(model, parts[0], lr * training.muon_lr / training.lr)
        parts += [muon] if muon else []
    if training.factor_lr != 1:
        if factors is None:
            factors = [factor for place in factorised_weights(model) for factor in place.factors.values()]
        for part in parts:
            scale_rate(part, factors, training.factor_lr)
    if training.personal_lr != 1:
        personal = set(local_names(model))
        own = [parameter for name, parameter in model.named_parameters() if name in personal]
        for part in parts:
            scale_rate(part, own, training.personal_lr)
    return parts[0] if len(parts) == 1 else Together(*parts)


def placed(batch: Batch, device: torch.device) -> Batch:
    """A batch on its device; images on a GPU with their channels last, as its convolutions are fastest."""
    if device.type != "cuda":
        return tuple(part.to(device) for part in batch)
    return tuple(
        part.to(device, non_blocking=True, memory_format=torch.channels_last)
        if part.dim() == 4 and part.is_floating_point()
        else part.to(device, non_blocking=True)
        for part in batch
    )


@contextmanager
def one_factor(model: nn.Module, round: int) -> Iterator[None]:
    """Train one factor of each factorised weight, another every round: X1, Y1, X2, Y2 (then T1, T2) in turn.

    The weight is linear in each of its factors, so that the mean of one factor, the others being equal everywhere, is
    that of the mean weight. What is not factorised trains in every round.
    """
    frozen = []
    for place in factorised_weights(model):
        factors = place.factors.values()
        frozen += [own for index, own in enumerate(factors) if index != (round - 1) % len(factors)]
    chosen = [own for own in frozen if own.requires_grad]
    try:
        for own in chosen:
            own.requires_grad_(False)
            own.grad = None
        yield
    finally:
        for own in chosen:
            own.requires_grad_(True)


def scale_rate(optimizer: torch.optim.Optimizer, chosen: list[nn.Parameter], share: float) -> None:
    """Multiply these parameters' learning rate, whatever group they are in."""
    names = {id(parameter) for parameter in chosen}
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in names]
        if own:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in names]
            optimizer.add_param_group({**group, "params": own, "lr": share * group["lr"]})


def batches(
    count: int, size: int, generator: torch.Generator, device: torch.device | None = None
) -> list[torch.Tensor]:
    """Indices of one epoch in random order. A last batch of one joins its neighbour: batch norm cannot take it."""
    parts = list(torch.randperm(count, generator=generator).to(device, non_blocking=True).split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


class Stepper:
    """One optimiser step after another, in the precision that the recipe names, and in parts where memory is short.

    A batch that does not fit is cut in two, as often as it takes, and the parts' gradients are added up: that is the
    batch's own, but for layers that look at the whole batch (batch norm). The next step starts with as many parts.

    With shares of the ranks, s_1 < s_2 < …, the columns up to s_1 and all that is not factorised get the gradient of
    the model that has these columns alone; the columns from there to s_2 that of the model up to s_2; and so on. So
    what narrow clients hold too is trained as they train it, and what is further learns what that leaves.

    Raises:
        DeviceError: a single example does not fit.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        method: Method | None,
        training: Training,
        device: torch.device,
    ) -> None:
        self._model, self._optimizer, self._method = model, optimizer, method
        self._loss = compiled_loss(task, training.batch_size) if training.compile else task.loss
        self._clip = training.clip
        dtype = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[training.precision]
        self._autocast = torch.autocast(device.type, dtype) if dtype else nullcontext()
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.parts = 1

    def __call__(self, batch: Batch, shares: Sequence[float] = ()) -> torch.Tensor:
        """Take a step; the batch's loss, of the widest model where there are shares, left on its device."""
        while True:
            try:
                loss = self._backward(batch, shares)
                break
            except torch.OutOfMemoryError as error:
                if self.parts >= max(map(len, batch)):
                    reason = str(error).partition("\n")[0]
                    raise DeviceError(f"one example does not fit into the device's memory: {reason}") from None
                self.parts *= 2
                log.warning("out of memory: batches in %d parts from now on", self.parts)
        self._scaler.unscale_(self._optimizer)
        if self._clip:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        if self._method:
            self._method.correct()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss

    def _backward(self, batch: Batch, shares: Sequence[float]) -> torch.Tensor:
        """Fresh gradients of the batch's loss, and the loss."""
        self._optimizer.zero_grad(set_to_none=True)
        if not shares:
            return self._add_in_parts(batch)
        losses = []
        for narrower, share in reversed(list(zip([0.0, *shares], shares, strict=False))):  # the widest first
            with at_share(self._model, share):
                losses.append(self._add_in_parts(batch))
            if narrower:
                drop_common_(self._model, narrower)
        return losses[0]

    def _add_in_parts(self, batch: Batch) -> torch.Tensor:
        if self.parts == 1:
            return self._add_gradients(batch)
        parts = parts_of(batch, self.parts)
        return torch.stack([self._add_gradients(part, len(part[0]) / len(batch[0])) for part in parts]).sum()

    def _add_gradients(self, batch: Batch, weight: float | None = None) -> torch.Tensor:
        with self._autocast:
            loss = self._loss(self._model, batch)
            loss = loss if weight is None else weight * loss
        self._scaler.scale(loss).backward()
        return loss.detach()


def parts_of(batch: Batch, count: int) -> Iterator[Batch]:
    """A batch in so many parts, or as many as its smallest tensor has rows."""
    count = max(1, min(count, *map(len, batch)))
    return zip(*(part.tensor_split(count) for part in batch), strict=True)
