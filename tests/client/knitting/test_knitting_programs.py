"""Programs: what the generator draws, what the checker finds, mirrors and backs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.tasks.knitting.instructions import (
    CROSSES,
    MEANINGS,
    MIRROR,
    MOVES,
    NAMES,
    PALETTE,
    S,
    counts,
    from_behind,
    mirrored,
    modal,
)
from client.tasks.knitting.knittability import broken, certain, mended, violated, violations
from client.tasks.knitting.programs import FAMILIES, PUBLISHED, Mix, frequencies, random_programs
from fedpara.errors import DataError
from fedpara.seeds import generator_for

OF = {name: place for place, name in enumerate(NAMES)}
programs = st.lists(st.lists(st.integers(0, 16), min_size=6, max_size=6), min_size=1, max_size=4).map(torch.tensor)


def row(text):
    return torch.tensor([[OF[name] for name in text.split()]])


def test_seventeen_instructions_each_with_a_name_a_meaning_and_a_colour():
    assert len(NAMES) == len(MEANINGS) == len(set(PALETTE)) == len(MIRROR) == 17
    assert MEANINGS[OF["FR2"]] == "knit, moved right by 2"
    assert MEANINGS[OF["BL1"]] == "purl, moved left by 1"
    assert MEANINGS[OF["XL-"]] == "cross to the left, below"


def test_the_mirror_exchanges_right_and_left_and_nothing_else():
    for own, other in enumerate(MIRROR):
        assert NAMES[other] == NAMES[own].translate(str.maketrans("RL", "LR"))
    assert torch.equal(mirrored(row("FR1 P XR+ XL-")), row("XR- XL+ P FL1"))


def test_from_behind_knit_is_purl_and_what_lay_above_lies_below():
    assert torch.equal(from_behind(row("K K FR1 XR+ XL-")), row("XR+ XL- BL1 P P"))


@given(programs)
def test_mirrors_and_backs_undo_themselves_and_keep_a_program_knittable(program):
    assert torch.equal(mirrored(mirrored(program)), program)
    assert torch.equal(from_behind(from_behind(program)), program)
    for other in (mirrored(program), from_behind(program)):
        assert len(violations(other)) == len(violations(program))


def literal(program):
    """The rules as the module's docstring says them."""
    found = []
    for r, line in enumerate(program.tolist()):
        names = [NAMES[own] for own in line]
        for c, name in enumerate(names):
            right = names[c + 1] if c + 1 < len(names) else ""
            left = names[c - 1] if c else ""
            partner = {"XR+": right == "XL-", "XR-": right == "XL+", "XL+": left == "XR-", "XL-": left == "XR+"}
            if not partner.get(name, True):
                found.append(("cross", r, c))
            if name[1:] in ("R1", "R2", "L1", "L2"):
                target = c + int(name[2]) * (1 if name[1] == "R" else -1)
                if not 0 <= target < len(names):
                    found.append(("move", r, c))
            if name == "S":
                reaching = [(-2, "R2"), (-1, "R1"), (1, "L1"), (2, "L2")]
                if not any(0 <= c + d < len(names) and names[c + d][1:] == move for d, move in reaching):
                    found.append(("stack", r, c))
    return found


@given(programs)
def test_the_checker_finds_what_the_rules_say_and_the_map_of_all_cells_agrees(program):
    found = violations(program)
    assert [tuple(violation[:3]) for violation in found] == literal(program)
    marked = {(violation.row, violation.column) for violation in found}
    assert {tuple(place) for place in broken(program[None])[0].nonzero().tolist()} == marked
    assert set(violated(certain(program[None])).unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("text", "rule", "column", "says"),
    [
        ("K XR+ K", "cross", 1, "XR+ needs XL- to its right, found K"),
        ("K XR+ XL+", "cross", 1, "XR+ needs XL- to its right, found XL+"),
        ("XL- K K", "cross", 0, "XL- needs XR+ to its left, found the edge"),
        ("K K FR1", "move", 2, "FR1 moves a loop off the edge of the fabric"),
        ("FL2 K K", "move", 0, "FL2 moves a loop off"),
        ("K S FR1 K", "stack", 1, "S joins loops, and no move of its row reaches it"),
    ],
)
def test_each_rule_is_named_with_its_place(text, rule, column, says):
    first = violations(row(text))[0]
    assert (first.rule, first.row, first.column) == (rule, 0, column)
    assert says in first.text


def test_what_is_no_instruction_or_no_grid_is_said():
    assert violations(torch.tensor([[0, 17]]))[0].text == "17 is no instruction: they are 0 to 16"
    with pytest.raises(DataError, match="expected a grid of whole numbers"):
        violations(torch.zeros(3, 3))


@given(programs)
def test_mending_leaves_nothing_broken_and_what_was_whole_as_it_was(program):
    after = torch.tensor(mended(program.tolist(), lambda r, c: 1))
    assert violations(after) == []
    if not violations(program):
        assert torch.equal(after, program)
    assert set(after[after != program].tolist()) <= {1}


@given(st.integers(4, 30), st.integers(4, 30), st.sampled_from(sorted(FAMILIES)), st.integers(0, 99))
def test_programs_of_any_size_can_be_knitted(rows, columns, family, seed):
    drawn = random_programs(2, generator_for(seed), Mix({family: 1.0}), (rows, columns))
    assert drawn.shape == (2, rows, columns)
    assert not broken(drawn).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_programs_of_every_family_can_be_knitted(family):
    drawn = random_programs(60, generator_for(0, family), Mix({family: 1.0}))
    assert drawn.shape == (60, 20, 20)
    assert all(violations(program.int()) == [] for program in drawn)
    special = {"cables": [*CROSSES], "lace": [4, 6, 8, 10], "held": [3], "tucked": [2], "ribs": [0, 1]}
    assert all(bool((drawn == own).any()) for own in special.get(family, []))


def test_instructions_come_as_often_as_published():
    drawn = random_programs(2000, generator_for(1))
    found = frequencies(drawn)
    wanted = torch.tensor(PUBLISHED, dtype=torch.double)
    assert float((found - wanted)[:2].abs().max()) < 3
    double = [own for own, step in MOVES.items() if abs(step) == 2]
    rest = [own for own in range(2, 17) if own not in double]
    share = found[rest] / wanted[rest]
    assert float(share.min()) > 0.6
    assert float(share.max()) < 1.6
    assert 0.005 < float(found[double].mean()) < 0.03
    ground = counts(drawn).max(1).values.double().mean() / 400
    assert 0.70 < float(ground) < 0.78
    assert not broken(drawn).any()


def test_programs_repeat_themselves_from_the_same_generator_and_differ_from_another():
    first = random_programs(5, generator_for(3))
    assert torch.equal(first, random_programs(5, generator_for(3)))
    assert not torch.equal(first, random_programs(5, generator_for(4)))
    assert random_programs(2, generator_for(0), size=(7, 31)).shape == (2, 7, 31)


def test_the_most_frequent_instruction_is_counted_by_program():
    both = torch.stack([row("K P P"), row("K K S")])
    assert modal(both).tolist() == [1, 0]
    assert counts(both)[1, S] == 1
    assert counts(both).sum(1).tolist() == [3, 3]


def test_moves_go_where_their_names_say():
    for own, step in MOVES.items():
        assert step == int(NAMES[own][2]) * (1 if NAMES[own][1] == "R" else -1)
