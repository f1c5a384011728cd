"""Error feedback, and differences to what a receiver holds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fedpara as fp
from fedpara.codec import encode_with_feedback
from fedpara.errors import CodecError, ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(seed: int, numbers: int = 400) -> dict[str, Tensor]:
    return {"w": torch.randn(numbers, generator=generator(seed)).view(-1, 4), "count": torch.tensor(seed)}


@given(st.sampled_from(["sign+feedback", "topk:0.05+feedback+entropy", "int2+entropy+feedback"]), st.integers(0, 2**31))
def test_the_residual_is_what_the_equations_say(spec: str, seed: int) -> None:
    coder = fp.codec(spec)
    reference, residual = weights(1), {"w": weights(2)["w"]}
    state = weights(3)
    blob, lost = encode_with_feedback(coder, state, reference=reference, residual=residual, generator=generator(seed))
    arrived = coder.decode(blob, state, reference=reference)
    # e' = (Δ + e) − C(Δ + e), with Δ = state − reference (Karimireddy et al. 2019, Algorithm 2)
    wanted = state["w"] - reference["w"] + residual["w"]
    torch.testing.assert_close(lost["w"], wanted - (arrived["w"] - reference["w"]), rtol=1e-5, atol=1e-5)
    assert set(lost) == {"w"}
    assert arrived["count"] == 3


def test_nothing_is_lost_over_many_rounds() -> None:
    coder, target = fp.codec("topk:0.05+feedback"), weights(4)["w"]
    received, residual = torch.zeros_like(target), None
    plain = torch.zeros_like(target)
    for round in range(60):
        zero = {"w": torch.zeros_like(target)}
        blob, residual = encode_with_feedback(
            coder, {"w": target}, reference=zero, residual=residual, generator=generator(round)
        )
        received += coder.decode(blob, zero, reference=zero)["w"]
        plain += coder.decode(coder.encode({"w": target}, reference=zero), zero, reference=zero)["w"]
    wanted = 60 * target
    assert (received - wanted).norm() < 0.3 * wanted.norm()  # what is left is a residual of a few rounds
    assert (plain - wanted).norm() > 0.6 * wanted.norm()  # without feedback the same few numbers go every time


def test_the_receiver_finds_the_model_that_a_payload_is_the_difference_to() -> None:
    coder, like = fp.codec("int4+entropy"), weights(0)
    first, second = weights(1), weights(2)
    blob = coder.encode(weights(3), reference=second, generator=generator())
    found = coder.find_reference(blob, like, [first, second])
    assert found is second
    with pytest.raises(CodecError, match="must be sent whole"):
        coder.find_reference(blob, like, [first, {"other": torch.zeros(2)}])
    assert coder.find_reference(coder.encode(weights(3)), like, []) is None
    with pytest.raises(CodecError, match="at least 32 bytes"):
        coder.find_reference(b"short", like, [])


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("sign+feedbak", r"sign\+feedback"),
        ("sign+entropy+entropy", r"sign\+entropy"),
        ("sign+", "sign"),
        ("fp32+feedback", "nothing that could be fed back"),
    ],
)
def test_suffixes_that_are_none_are_refused_with_the_nearest(spec: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        fp.codec(spec)


def test_suffixes_go_in_any_order_and_both_ends_must_agree() -> None:
    one, other = fp.codec("int4+entropy+feedback"), fp.codec("int4+feedback+entropy")
    assert one.entropy
    assert one.feedback
    assert other.entropy
    assert other.feedback
    assert not fp.codec("int4").feedback
