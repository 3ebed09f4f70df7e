"""Controlled decoding as the library knows it: a form, and a bound of the KL."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infalign import BestOfN, Controlled, InvalidValue, parse_decoding, parse_procedure
from infalign.manifest import Alignment


@given(st.integers(1, 999_999), st.integers(1, 999_999))
def test_the_form_is_read_back(k: int, block: int) -> None:
    assert parse_decoding(str(Controlled(k, block))) == Controlled(k, block)


@pytest.mark.parametrize("text", ["standard", "best-of-4", "worst-of-2", "best-of-poisson(3)"])
def test_every_other_procedure_is_decoding_too(text: str) -> None:
    assert parse_decoding(text) == parse_procedure(text)


@pytest.mark.parametrize("text", ["controlled", "controlled-4", "controlled-0x4", "controlled-4x", "controlled-4x-1"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_decoding(text)


def test_where_theory_is_needed_the_refusal_says_why() -> None:
    with pytest.raises(InvalidValue, match=r"'controlled-4x16', accepted: standard, .*no closed form"):
        parse_procedure("controlled-4x16")
    with pytest.raises(ValidationError, match="no closed form"):
        Alignment(procedure="controlled-4x16", measured={})


@pytest.mark.parametrize(("k", "block"), [(0, 4), (4, 0), (-1, 4)])
def test_numbers_below_one_are_refused(k: int, block: int) -> None:
    with pytest.raises(InvalidValue):
        Controlled(k, block)


def test_one_block_is_bounded_as_best_of_k_and_blocks_add_up() -> None:
    assert Controlled(8, 4).kl_bound(1) == BestOfN(8).kl_bound
    assert Controlled(8, 4).kl_bound(2.5) == pytest.approx(2.5 * BestOfN(8).kl_bound)
    assert Controlled(1, 4).kl_bound(9) == 0
    assert [Controlled(2, 4).blocks(tokens) for tokens in (1, 4, 5, 8)] == [1, 1, 2, 2]


def test_the_bound_holds_for_a_chain_of_two_values() -> None:
    """Blocks of one token, each 0 or 1 with probability 1/2, of which the scorer prefers 1: the KL is exact here."""
    k, length = 3, 5
    one = 1 - 0.5**k  # the probability that one of K is 1
    exact = length * (one * math.log(one / 0.5) + (1 - one) * math.log((1 - one) / 0.5))
    assert 0 < exact <= Controlled(k, 1).kl_bound(length)


def test_several_answers_keep_their_order() -> None:
    rewards: Any = [0.1, 0.9, 0.5]
    assert np.array_equal(Controlled(2, 4).ranking(rewards), [0, 1, 2])
