"""Sampling: made from a sampling law, and passed on whole by either kind of engine."""

from dataclasses import fields, replace
from typing import Any

import pytest
from msgspec.structs import asdict

from infalign.manifest import SamplingLaw
from server.engines import Sampling, Structure
from server.engines.outputs import sampling_params
from server.engines.wire import _params

LAW = SamplingLaw(temperature=0.7, top_p=0.9, top_k=5, max_tokens=8)
CHANGES: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.8,
    "top_k": 7,
    "max_tokens": 9,
    "seed": 4,
    "min_p": 0.1,
    "min_tokens": 2,
    "stop": ("x",),
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.5,
    "logit_bias": ((3, 1.0),),
    "logprobs": 2,
    "structure": Structure("json_object"),
    "skip_special_tokens": False,
}
"""A value of each field that says how a candidate is drawn.

The policy is chosen otherwise by either engine. Engines of this process are told where reasoning ends by an argument of
its own, and vLLM servers find out themselves.
"""


def test_what_is_left_out_is_the_laws() -> None:
    sampling = Sampling.from_law(LAW, policy="demo", seed=3, temperature=None, top_p=0.5, logprobs=None)
    assert sampling == Sampling(temperature=0.7, top_p=0.5, top_k=5, max_tokens=8, seed=3, policy="demo")


def test_every_field_is_tried() -> None:
    assert CHANGES.keys() | {"policy", "reasoning_ended"} == {field.name for field in fields(Sampling)}


@pytest.mark.parametrize("name", CHANGES)
def test_either_kind_of_engine_is_given_every_field(name: str) -> None:
    sampling = Sampling.from_law(LAW, policy=None, seed=3)
    change = replace(sampling, **{name: CHANGES[name]})
    assert asdict(sampling_params(sampling, False)) != asdict(sampling_params(change, False))
    assert _params(sampling, False) != _params(change, False)
