"""Functions that tests use as rewards, good and bad."""

import os
import time
from typing import Any

import numpy as np


def length(prompts: list[list[dict[str, str]]], responses: list[str]) -> list[int]:
    """How many characters a response has."""
    print("counting")  # must not reach the output of a command
    return [len(response) for response in responses]


def spread(prompts: list[list[dict[str, str]]], responses: list[str]) -> list[float]:
    """A number that differs between most responses."""
    return [sum(map(ord, response)) % 97 / 97 for response in responses]


def last_digit(prompts: list[list[dict[str, str]]], responses: list[str]) -> Any:
    """The last character as a number; raises if it is none."""
    return np.array([float(response[-1]) for response in responses])


def turns(prompts: list[list[dict[str, str]]], responses: list[str]) -> list[int]:
    """How many turns come before a response."""
    return [len(prompt) for prompt in prompts]


def nan(prompts: list[list[dict[str, str]]], responses: list[str]) -> list[float]:
    """No number for the last response."""
    return [0.0] * (len(responses) - 1) + [float("nan")]


def too_few(prompts: list[list[dict[str, str]]], responses: list[str]) -> list[float]:
    """One number too few."""
    return [0.0] * (len(responses) - 1)


def nothing(prompts: list[list[dict[str, str]]], responses: list[str]) -> None:
    """No list at all."""


def hang(prompts: list[list[dict[str, str]]], responses: list[str]) -> list[float]:
    """Hangs at a response that says so."""
    if "hang" in responses:
        time.sleep(600)
    return [1.0 for _ in responses]


def leave(prompts: list[list[dict[str, str]]], responses: list[str]) -> list[float]:
    """Ends its process at a response that says so."""
    if "leave" in responses:
        os._exit(3)
    return [1.0 for _ in responses]


not_a_function = 3
