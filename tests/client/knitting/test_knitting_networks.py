"""Networks, losses and judging, each beside its equation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.tasks.knitting.instructions import modal
from client.tasks.knitting.judging import aligned, by_instruction, confusion, score
from client.tasks.knitting.knittability import broken, certain
from client.tasks.knitting.losses import (
    adversarial,
    cell_weights,
    cross_entropy,
    gabor_bank,
    perceptual,
    shifted_cross_entropy,
    syntax,
)
from client.tasks.knitting.network import Discriminator, Img2prog, Knitter, Refiner, frozen, scaled
from client.tasks.knitting.programs import Mix, random_programs
from client.tasks.knitting.renderer import render
from fedpara.parametrize import FedPara, merge_, parametrize_
from fedpara.seeds import generator_for


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_sizes_are_the_papers():
    assert round(parameters(Img2prog()) / 1e6, 2) == 0.59
    assert round(parameters(Img2prog(plus=True)) / 1e6, 2) == 0.79
    assert round(parameters(Refiner()) / 1e6, 2) == 0.59
    assert parameters(Img2prog(25)) < 93_000


@pytest.mark.parametrize("plus", [False, True])
def test_a_reader_takes_any_whole_number_of_cells(plus):
    model = Knitter(8, 1, plus, refiner=4)
    assert model(torch.rand(2, 1, 160, 160)).shape == (2, 17, 20, 20)
    assert model(torch.rand(1, 1, 48, 80)).shape == (1, 17, 6, 10)
    assert model.discriminator(torch.rand(2, 1, 48, 80), torch.zeros(2, 6, 10)).shape == (2, 1, 6, 10)


def test_a_refiner_begins_by_changing_nothing_and_stays_in_range():
    refiner, x = Refiner(8, 1), 2 * torch.rand(2, 1, 32, 32, generator=generator_for(0)) - 1
    assert torch.allclose(refiner(x), x, atol=2e-3)
    with torch.no_grad():
        refiner.last.bias.fill_(5.0)
    refined = refiner(x).detach()
    assert float(refined.max()) <= 1
    assert float(refined.min()) > 0


def test_all_networks_are_factorised_and_merge_back():
    torch.manual_seed(0)
    model = parametrize_(Knitter(16, 2, True, refiner=16), FedPara(ratio=0.3)).eval()
    x = torch.rand(1, 1, 32, 32)
    for part in (model.reader, model.refiner, model.discriminator):
        assert any("parametrizations" in name for name, _ in part.named_parameters())
    before = model(x)
    assert torch.allclose(merge_(model)(x), before, atol=1e-4)


@given(st.floats(0.3, 1.5), st.integers(-40, 40))
def test_exposure_and_contrast_tell_nothing(gain, offset):
    image = 90 + 60 * torch.rand(1, 16, 16, generator=generator_for(0))
    other = (gain * (image - 120) + 120 + offset).clamp(0, 255)
    assert torch.allclose(scaled(image), scaled(other), atol=0.02)
    assert float(scaled(image).abs().max()) <= 1
    assert torch.equal(scaled(torch.full((1, 8, 8), 7, dtype=torch.uint8)), torch.zeros(1, 1, 8, 8))


def example(count=3, side=7):
    generator = generator_for(0)
    logits = torch.randn(count, 17, side, side, generator=generator)
    programs = torch.randint(0, 17, (count, side, side), generator=generator)
    return logits, programs


def test_the_ground_counts_less():
    programs = torch.tensor([[[1, 1], [1, 4]], [[0, 0], [5, 5]]])
    assert torch.equal(cell_weights(programs, 0.1)[0], torch.tensor([[0.1, 0.1], [0.1, 1.0]]))
    assert torch.equal(cell_weights(programs, 0.1)[1], torch.tensor([[0.1, 0.1], [1.0, 1.0]]))


def test_cross_entropy_is_the_weighted_mean_of_minus_log_p():
    logits, programs = example()
    weights = cell_weights(programs, 0.1)
    for n in range(len(programs)):
        total = 0.0
        for r in range(7):
            for c in range(7):
                p = logits[n, :, r, c].double().softmax(0)[programs[n, r, c]]
                total -= float(weights[n, r, c]) * math.log(float(p))
        wanted = total / float(weights[n].sum())
        assert float(cross_entropy(logits, programs, weights)[n]) == pytest.approx(wanted, rel=1e-5)


def test_milce_is_the_least_of_nine_shifts_within_the_border():
    logits, programs = example()
    weights = cell_weights(programs, 0.1)
    logp = logits.log_softmax(1)
    for n in range(len(programs)):
        losses = []
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                total = norm = 0.0
                for r in range(1, 6):
                    for c in range(1, 6):
                        weight = float(weights[n, r + dy, c + dx])
                        total -= weight * float(logp[n, programs[n, r + dy, c + dx], r, c])
                        norm += weight
                losses.append(total / norm)
        found = shifted_cross_entropy(logits, programs, weights)
        assert float(found[n]) == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (-1, 1), (1, 1)])
def test_milce_and_the_aligned_score_forgive_a_shift_of_a_cell_and_cross_entropy_does_not(shift):
    programs = random_programs(2, generator_for(5), Mix({"lace": 1.0})).long()
    moved = programs.roll(shift, (1, 2))
    logits = 20 * certain(moved)
    weights = cell_weights(programs, 0.1)
    assert float(shifted_cross_entropy(logits, programs, weights).max()) < 1e-3
    assert aligned(moved, programs).values()["foreground"] == 1
    if shift != (0, 0):
        assert float(cross_entropy(logits, programs, weights).min()) > 0.5
        assert score(moved, programs).values()["foreground"] < 0.9


def test_adversarial_gradients_teach_each_network_its_own():
    torch.manual_seed(0)
    judge, refiner = Discriminator(8), Refiner(8, 1)
    programs = random_programs(2, generator_for(0)).long()
    x = 2 * torch.rand(2, 1, 160, 160) - 1
    rendered = scaled(render(programs))
    refined = refiner(x)
    adversarial(judge, refined, programs, rendered, programs).backward()
    of_judge = [p.grad.clone() for p in judge.parameters()]
    of_refiner = refiner.last.weight.grad.clone()
    judge.zero_grad()
    refiner.zero_grad()
    refined = refiner(x)
    taught = 0.5 * ((judge(rendered, programs) - 1).square().mean() + judge(refined.detach(), programs).square().mean())
    taught.backward()
    assert all(torch.allclose(a, p.grad, atol=1e-6) for a, p in zip(of_judge, judge.parameters(), strict=True))
    ((judge(refined, programs) - 1).square().mean()).backward()
    assert torch.allclose(of_refiner, refiner.last.weight.grad, atol=1e-6)
    assert float(of_refiner.abs().sum()) > 0


def test_frozen_gives_back_what_was_trained():
    model = Discriminator(4)
    model.judge[0].bias.requires_grad_(False)
    with frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["judge.0.bias"]


def test_the_filter_bank_sees_texture_and_not_light_or_small_shifts():
    bank = gabor_bank()
    assert bank.shape == (16, 1, 15, 15)
    assert float(bank.sum((2, 3)).abs().max()) < 1e-4
    assert torch.allclose(bank.flatten(1).norm(dim=1), torch.ones(16))
    x = torch.arange(64.0)
    stripes = torch.sin(2 * math.pi * x / 8).expand(1, 1, 64, 64)
    inner = (..., slice(16, 48), slice(16, 48))
    beside = perceptual(stripes[inner], stripes.roll(2, 3)[inner])
    turned = perceptual(stripes[inner], stripes.transpose(2, 3)[inner])
    assert float(turned) > 5 * float(beside)
    assert float(perceptual(stripes, stripes)) == 0


def test_syntax_is_the_share_of_broken_cells_where_the_reader_is_certain():
    programs = torch.randint(0, 17, (3, 8, 8), generator=generator_for(1))
    wanted = broken(programs).float().mean()
    assert float(syntax(60 * certain(programs))) == pytest.approx(float(wanted), abs=1e-5)
    logits = torch.zeros(1, 17, 4, 4, requires_grad=True)
    syntax(logits).backward()
    assert float(logits.grad[:, 12:].abs().sum()) > 0
    assert float(syntax(60 * certain(random_programs(4, generator_for(2))))) == pytest.approx(0, abs=1e-5)


def test_full_and_foreground_are_what_they_say():
    true = torch.tensor([[[0, 0, 0], [0, 4, 1]], [[1, 1, 1], [1, 1, 0]]])
    read = torch.tensor([[[0, 0, 1], [0, 4, 0]], [[1, 1, 1], [1, 1, 0]]])
    found = score(read, true).values()
    assert found["accuracy"] == pytest.approx((4 / 6 + 6 / 6) / 2)
    assert found["foreground"] == pytest.approx(2 / 3)
    ground = modal(true).view(-1, 1, 1).expand_as(true)
    assert score(ground, true).values()["foreground"] == 0
    assert score(ground, true).values()["accuracy"] == pytest.approx((4 / 6 + 5 / 6) / 2)
    assert score(true, true).values() == {"accuracy": 1, "foreground": 1, "violations": pytest.approx(0)}


def test_the_table_by_instruction_counts_every_cell_once():
    true, read = torch.tensor([[[0, 0, 4]]]), torch.tensor([[[0, 1, 4]]])
    table = confusion(read, true)
    assert table.sum() == 3
    assert table[0, 1] == table[0, 0] == table[4, 4] == 1
    lines = by_instruction(table, tuple("abcdefghijklmnopq"))
    assert lines[1] == ["a", "2", "50.0 %", "100.0 %", "b"]
    assert [line[0] for line in lines] == ["instruction", "a", "e"]


def test_a_reader_learns_renderings_by_heart():
    torch.manual_seed(0)
    model = Img2prog(8, 1)
    programs = random_programs(2, generator_for(0), Mix({"ribs": 1.0}))
    drawn, weights = scaled(render(programs)), cell_weights(programs, 0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        loss = cross_entropy(model(drawn), programs, weights).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    assert score(model(drawn).argmax(1), programs.long()).values()["accuracy"] > 0.8
