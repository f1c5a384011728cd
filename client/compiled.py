"""A task's loss through torch.compile: fewer and larger kernels, for a while of compiling at the start."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from torch import Tensor, nn

from fedpara.task import Batch, Task

log = logging.getLogger("fedpara")
SIZES = 2  # of batches, that are compiled for


class CompiledLoss:
    """``task.loss``, compiled for full batches and one other size: that of an epoch's last, where clients are equal.

    More sizes are not worth the compiling. Where nothing can be compiled (no C++ compiler), the loss is computed as it
    is written, with a warning. Models that are copies of one another share what was compiled.
    """

    def __init__(self, task: Task, size: int) -> None:
        self._plain, self._sizes = task.loss, {size}
        self._compiled = torch.compile(task.loss, dynamic=False)
        self._works = True

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        if len(self._sizes) < SIZES:
            self._sizes.add(len(batch[0]))
        if self._works and len(batch[0]) in self._sizes:
            try:
                return self._compiled(model, batch)
            except torch._dynamo.exc.TorchDynamoException as error:
                self._works = False
                log.warning("training is not compiled, and slower for it: %s", str(error).strip().partition("\n")[0])
        return self._plain(model, batch)


@lru_cache(maxsize=4)
def compiled_loss(task: Task, size: int) -> CompiledLoss:
    """Of this task and size of batch, one for all clients of a process."""
    return CompiledLoss(task, size)
