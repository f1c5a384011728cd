"""Flower as its own documentation has it: FedAvg, a ClientApp, and its simulation on Ray."""

from __future__ import annotations

import sys

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from simulations.benchmarks.engines import workload

client, server = ClientApp(), ServerApp()
FILE = sys.argv[1] if len(sys.argv) > 1 else ""


@client.train()
def train(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    model = workload.network()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    workload.train(model, workload.Workload(FILE).client(int(context.node_config["partition-id"])))
    records = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": workload.EXAMPLES})}
    return Message(RecordDict(records), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    data, model = workload.Workload(FILE), workload.network()

    def told(round: int, arrays: ArrayRecord) -> MetricRecord:
        workload.tell("round" if round else "ready")
        if round == workload.ROUNDS:
            model.load_state_dict(arrays.to_torch_state_dict())
            workload.tell("end", accuracy=workload.accuracy(model, data.test))
        return MetricRecord()

    share = workload.COHORT / workload.CLIENTS
    strategy = FedAvg(fraction_train=share, fraction_evaluate=0.0)
    strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=workload.ROUNDS, evaluate_fn=told)


if __name__ == "__main__":
    processes = int(sys.argv[2])
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": processes}}
    run_simulation(server, client, workload.CLIENTS, backend_config=resources)
