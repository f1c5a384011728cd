"""Real brackets and response bases, where $FEDPARA_DATA has them."""

import os
from pathlib import Path

import pytest


def data(name):
    path = Path(os.environ.get("FEDPARA_DATA") or "nowhere") / "hdr" / name
    if not path.exists():
        pytest.skip(f"FEDPARA_DATA names no folder with hdr/{name}")
    return path


@pytest.fixture
def memorial():
    """The bracket of Debevec and Malik's memorial church."""
    return data("memorial")


@pytest.fixture
def emor():
    """The measured response basis."""
    return data("emor.npz")
