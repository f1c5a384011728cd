"""Optimisers step without torch's compiler, and whoever compiles still can."""

import subprocess
import sys
import textwrap

import pytest

BEFORE = """
import sys, torch
from torch import nn
from fedpara.lean import spare_compiler, _Later
spare_compiler()
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
x = torch.randn(3, 4)

def step(kind):
    optimizer = kind(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    return optimizer
"""
USES = {
    "compile": "torch.testing.assert_close(torch.compile(model, backend='eager')(x), model(x))",
    "export": "torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))",
    "submodule": "from torch._dynamo.utils import counters; assert counters is not None",
    "import": "import torch._dynamo as compiler; assert compiler.config is not None",
    "reset": "torch.compiler.reset()",
}


def run(code):
    ended = subprocess.run(
        [sys.executable, "-c", BEFORE + textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_optimisers_step_without_it():
    run("""
        for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
            step(kind).state_dict()
        assert isinstance(sys.modules["torch._dynamo"], _Later)
        assert "sympy" not in sys.modules
    """)


@pytest.mark.parametrize("use", USES)
def test_whoever_compiles_gets_the_real_one(use):
    run(f"""
        step(torch.optim.SGD)
        {USES[use]}
        assert not isinstance(sys.modules["torch._dynamo"], _Later)
        assert torch._dynamo is sys.modules["torch._dynamo"]
        step(torch.optim.Adam)
    """)


def test_a_compiler_that_is_there_stays():
    run("""
        import importlib
        sys.modules.pop("torch._dynamo"); del torch._dynamo
        real = importlib.import_module("torch._dynamo")
        spare_compiler()
        assert sys.modules["torch._dynamo"] is real
    """)
