"""What passes the line, counted by a proxy in it: eight megabytes of payload cost hardly more."""

import pytest

import fedpara as fp
from simulations.benchmarks.wire import Wire

pytestmark = [pytest.mark.slow, pytest.mark.deploy]

LARGE = {
    "parametrization": "none",
    "model": "cnn",
    "hidden": 7000,  # the app itself is sent once, a megabyte: it must not be what is counted
    "uplink": "fp32",
    "downlink": "fp32",
    "first-broadcast": "weights",
    "rounds": 6,
    "epochs": 1,
}


def test_nearly_all_of_what_passes_the_line_is_payload(deploy):
    deployment = deploy(names=("north",), **LARGE)
    wire = Wire(deployment.port)
    deployment.set("north", "port", wire.port)
    deployment.start_all()
    deployment.fedpara("deploy", "run", str(deployment.server), timeout=400)
    run = fp.Run(deployment.server / "run")
    wire.close()
    payload = run.ledger.by("direction")
    assert payload["up"] == payload["down"] > 6 * 5_000_000
    assert 0.98 <= (payload["up"] + payload["down"]) / (wire.up + wire.down) < 1
    assert run.ledger.total(unit="message") <= wire.up + wire.down
