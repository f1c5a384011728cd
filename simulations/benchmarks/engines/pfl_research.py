"""Apple's pfl-research on the same workload; it asks for an environment of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from simulations.benchmarks.engines import workload


class Trained(workload.Network):
    """The network with the two methods that pfl asks for."""

    def loss(self, images: torch.Tensor, labels: torch.Tensor, eval: bool = False) -> torch.Tensor:
        self.train(not eval)
        return F.cross_entropy(self(workload.scaled(images)), labels)

    def metrics(self, images: torch.Tensor, labels: torch.Tensor, eval: bool = True) -> dict[str, Weighted]:
        return {"loss": Weighted(float(self.loss(images, labels, eval)) * len(labels), len(labels))}


class Told(TrainingProcessCallback):
    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):  # type: ignore[no-untyped-def]
        workload.tell("round")
        return False, Metrics()


def main() -> None:
    data, _ = workload.arguments()
    torch.set_num_threads(1)
    network = Trained()
    network.load_state_dict(workload.network().state_dict())
    chosen = iter([place for round in range(1, workload.ROUNDS + 2) for place in workload.cohort(round)])
    users = FederatedDataset(lambda place: PyTorchTensorDataset(list(data.client(place))), lambda: next(chosen))
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    workload.tell("ready")
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=workload.ROUNDS,
            evaluation_frequency=workload.ROUNDS + 1,
            train_cohort_size=workload.COHORT,
            val_cohort_size=0,
        ),
        SimulatedBackend(users, users),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=workload.RATE, local_batch_size=workload.BATCH),
        NNEvalHyperParams(local_batch_size=workload.BATCH),
        callbacks=[Told()],
    )
    workload.tell("end", accuracy=workload.accuracy(network, data.test))


if __name__ == "__main__":
    main()
