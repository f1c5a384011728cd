"""No framework: processes that train their share of the cohort into shared memory, and a mean in place."""

from __future__ import annotations

from multiprocessing.connection import Connection

import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from simulations.benchmarks.engines import workload


def work(data: workload.Workload, shared: Tensor, total: Tensor, pipe: Connection) -> None:
    """Train the clients whose places arrive, from the shared model; add what comes out to this process's total."""
    torch.set_num_threads(1)
    model = workload.network()
    for places in iter(pipe.recv, None):
        total.zero_()
        for place in places:
            vector_to_parameters(shared.clone(), model.parameters())
            workload.train(model, data.client(place))
            total += parameters_to_vector(model.parameters()).detach()
        pipe.send(len(places))


def main() -> None:
    data, processes = workload.arguments()
    torch.set_num_threads(1)
    model = workload.network()
    shared = parameters_to_vector(model.parameters()).detach().share_memory_()
    totals = [torch.zeros_like(shared).share_memory_() for _ in range(processes)]
    context, pipes = mp.get_context("fork"), []
    for total in totals:
        near, far = context.Pipe()
        context.Process(target=work, args=(data, shared, total, far), daemon=True).start()
        pipes.append(near)
    workload.tell("ready")
    for round in range(1, workload.ROUNDS + 1):
        chosen = workload.cohort(round)
        for index, pipe in enumerate(pipes):
            pipe.send(chosen[index::processes])
        count = sum(pipe.recv() for pipe in pipes)
        shared.copy_(sum(totals) / count)
        workload.tell("round")
    vector_to_parameters(shared, model.parameters())
    torch.set_num_threads(processes)  # nobody trains any more
    workload.tell("end", accuracy=workload.accuracy(model, data.test))


if __name__ == "__main__":
    main()
