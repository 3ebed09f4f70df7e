"""Engines and tokenizers in memory, for what no real ones do on demand."""

import asyncio
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infalign import Bundle, CalibrationTable, Combination, Estimator
from infalign.manifest import Alignment, CalibrationRecord, Manifest, PolicyRecord, SamplingLaw, ScorerRecord
from infalign.templates import prompt_key, render_prompt
from server.app import ServedBundle
from server.engines import (
    Completion,
    Delta,
    EnginesDown,
    NextToken,
    Refused,
    RequestFailed,
    Sampling,
    Structure,
    TokenLogprob,
)

LAW = SamplingLaw(max_tokens=8)
MARKS = {"<think>": 1, "</think>": 2, "<tool_call>": 3, "</tool_call>": 4}
"""Tokens that are not one character."""
KNOWN = "known question"
BINS = 10
SCORER = ScorerRecord(
    reference="r",
    reward_model="w",
    calibration="c",
    chat_template="t",
    trunk="reward",
    edges=tuple(digit - 0.5 for digit in range(BINS + 1)),
    checkpoint=1,
    limit=0.002,
    rejection={},
    shares={},
    measured={"calibration_predicted": 0.2},
)
"""The record of the prefix scorer that FakeEngines have. Its bins each hold one digit."""
STRONG = Alignment(procedure="best-of-4", transformation="exp(10)", beta=0.1, measured={})
WEAK = Alignment(procedure="best-of-4", transformation="exp(10)", beta=0.3, measured={"kl": 0.2})
"""An alignment whose candidates seldom reach a high target, so that waves are larger."""


class CharacterTokenizer:
    """One token a character."""

    chat_template = "fake"
    eos_token = "."
    all_special_tokens: tuple[str, ...] = ()
    all_special_ids: tuple[int, ...] = ()
    added_tokens_decoder: Mapping[int, Any] = {}

    def apply_chat_template(
        self,
        conversation: Sequence[dict[str, Any]],
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Writes the variables, then for each turn its role, its other fields and its content.

        It accepts no variable called ``forbidden``.
        """
        assert not tokenize
        if "forbidden" in variables:
            raise ValueError("it knows no such variable")
        head = "".join(f"{{{name}={json.dumps(value)}}}" for name, value in variables.items())
        turns = "".join(
            f"[{turn['role']}]"
            + "".join(f"({key}:{json.dumps(turn[key])})" for key in turn if key not in ("role", "content"))
            + f"{turn['content']}."
            for turn in conversation
        )
        if continue_final_message:
            turns = turns[:-1]
        return head + turns + ("[assistant]" if add_generation_prompt else "")

    def __len__(self) -> int:
        return 0x110000

    def get_vocab(self) -> dict[str, int]:
        """The tokens that parsers of reasoning and of calls look for."""
        return MARKS

    def __call__(self, text: str | list[str], **options: Any) -> dict[str, Any]:
        if isinstance(text, list):
            return {"input_ids": [[ord(character) for character in each] for each in text]}
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, tokens: Sequence[int], **options: Any) -> str:
        return "".join(map(chr, tokens))


class ByteTokenizer(CharacterTokenizer):
    """One token a byte, so that a character may need several."""

    def __call__(self, text: str | list[str], **options: Any) -> dict[str, Any]:
        if isinstance(text, list):
            return {"input_ids": [list(each.encode()) for each in text]}
        return {"input_ids": list(text.encode())}

    def decode(self, tokens: Sequence[int], **options: Any) -> str:
        return bytes(tokens).decode(errors="replace")


class FakeEngines:
    """Answers with its seed. A model's reward is the last digit of the answer, of every other model 9 less it.

    It refuses what real engines refuse: any work while it is not up, a prompt that is empty or does not fit the context
    with its response, a text to score that does not fit. Faults are switched on by the test.
    """

    def __init__(self, context: int = 200) -> None:
        self.context = context
        self.dead = False
        self.hang = False
        self.hang_reference = False
        self.stall = False  # hang once some text has been told of
        self.fault: Exception | None = None
        self.faults: dict[int, Exception] = {}
        """By seeds, what their draws raise."""
        self.fail_scoring_after: int | None = None
        self.slow: set[int] = set()
        """Seeds whose draws do not end."""
        self.refuse_starts = 0
        self.starts = 0
        self.loaded: dict[str, Path] = {}
        self.bug = False
        self.running = 0
        self.drawn: list[Sampling] = []
        self.judged: list[str] = []
        self.next_token: NextToken | None = None
        self.prefixes: list[str] = []
        """What the prefix scorer has read."""
        self.prefix_fault: Exception | None = None
        self.late_failures: list[EnginesDown] = []
        """What has happened to engines that are started when they are needed."""
        self.started = asyncio.Event()

    @property
    def reference_draws(self) -> list[Sampling]:
        """Those that name no policy."""
        return [sampling for sampling in self.drawn if sampling.policy is None]

    async def start(self) -> None:
        self.starts += 1
        if self.refuse_starts:
            self.refuse_starts -= 1
            raise RuntimeError("no memory")
        self.dead = False
        self.started.set()

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        self._check_up()
        if self.bug:
            raise LookupError("a mistake in the code")
        if not prompt or len(prompt) + sampling.max_tokens > self.context:
            raise Refused(f"{len(prompt)} tokens and {sampling.max_tokens} do not fit {self.context}")
        self.running += 1
        self.drawn.append(sampling)
        words = ("answer", f" {sampling.seed}")
        try:
            hang = self.hang or sampling.seed in self.slow or (self.hang_reference and sampling.policy is None)
            await asyncio.sleep(3600 if hang else 0)
            if self.fault:
                raise self.fault
            if sampling.seed in self.faults:
                raise self.faults[sampling.seed]
            if listen:
                listen(Delta(words[0], token_ids=tuple(map(ord, words[0][:2]))))
                listen(Delta(words[1], token_ids=(ord(words[1][-1]),)))
            await asyncio.sleep(3600 if self.stall else 0)
        finally:
            self.running -= 1
        logprobs = tuple(TokenLogprob(word, -0.5, ((word, -0.5),)) for word in words)
        return Completion("".join(words), 3, "stop", None if sampling.logprobs is None else logprobs)

    async def check_structure(self, structure: Structure) -> None:
        """Every schema will do."""
        self._check_up()

    async def score(self, tokens: Sequence[list[int]]) -> list[float]:
        self._check_up()
        if self.fail_scoring_after is not None:
            self.fail_scoring_after -= 1
            if self.fail_scoring_after < 0:
                raise EnginesDown("the reward model has died")
        if not tokens or not all(tokens) or max(map(len, tokens)) > self.context:
            raise RequestFailed(f"a text to score that does not fit {self.context} tokens")
        digits = [_last_digit("".join(map(chr, read)).rstrip(".")) for read in tokens]
        return [digit if model % 2 == 0 else 9 - digit for model, digit in enumerate(digits)]

    async def next_logprobs(self, prompt: list[int], tokens: Sequence[int]) -> NextToken:
        """The last digit of the text but the rubric's end is the likeliest token."""
        self._check_up()
        if len(prompt) >= self.context:
            raise RequestFailed(f"a text to judge that does not fit {self.context} tokens")
        self.judged.append("".join(map(chr, prompt)))
        await asyncio.sleep(3600 if self.hang else 0)
        if self.fault:
            raise self.fault
        return self.next_token or NextToken(tuple(-abs(token - prompt[-1]) for token in tokens), len(prompt) + 1, 5)

    async def score_prefix(self, tokens: list[int]) -> list[float]:
        """The law of the quantile has its mode at the last digit of the text, of 10 bins."""
        self._check_up()
        text = "".join(map(chr, tokens))
        self.prefixes.append(text)
        await asyncio.sleep(3600 if self.hang else 0)
        if self.prefix_fault:
            raise self.prefix_fault
        digit = _last_digit(text)
        return [-abs(place - digit) if digit >= 0 else 0.0 for place in range(10)] + [0.0] * 10

    async def load(self, policy: str, adapter: Path) -> None:
        self._check_up()
        self.loaded[policy] = adapter

    async def unload(self, policy: str) -> None:
        assert not self.running
        del self.loaded[policy]

    async def check(self) -> None:
        self._check_up()

    async def discard_failed(self) -> list[EnginesDown]:
        failures, self.late_failures = self.late_failures, []
        return failures

    def stop(self) -> None:
        self.dead = True

    def _check_up(self) -> None:
        if self.dead:
            raise EnginesDown("an engine has died")
        if not self.started.is_set():
            raise EnginesDown("the engines are not up")


class Predicting(FakeEngines):
    """Predicts that the rewards of all responses to a prompt are spread evenly up to the prompt's last digit."""

    async def score_prefix(self, tokens: list[int]) -> list[float]:
        outputs = await super().score_prefix(tokens)
        highest = int(chr(tokens[-1]))
        return [*outputs[:BINS], *(0.0 if digit <= highest else -50.0 for digit in range(BINS))]


class SteppedEngines(FakeEngines):
    """Draws a response token by token, each of one character, and is sure of how it will end.

    Args:
        texts: The responses, by the seed.
    """

    def __init__(self, *texts: str) -> None:
        super().__init__(context=4000)
        self.texts = texts
        self.pauses: dict[int, int] = {}
        """By seed, further turns of the event loop between two tokens."""
        self.stalls: dict[int, int] = {}
        """By seed, tokens after which a draw hangs until the engine dies."""
        self.prefix_pause = 0
        """Turns of the event loop that the prefix scorer takes."""
        self.prefix_outputs: list[float] | None = None
        """What the prefix scorer gives in place of a law."""
        self.tokens: dict[int, int] = {}
        """By seed, how many tokens were drawn."""
        self.aborted: list[int] = []
        """Seeds of draws that did not end."""

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        self._check_up()
        self.running += 1
        self.drawn.append(sampling)
        seed, text = sampling.seed, self.texts[sampling.seed % len(self.texts)]
        try:
            for place, token in enumerate(text):
                while self.stalls.get(seed) == place and not self.dead:
                    await asyncio.sleep(0.001)
                await _turns(1 + self.pauses.get(seed, 0))
                self._check_up()
                self.tokens[seed] = place + 1
                if listen:
                    listen(Delta(token, token_ids=(ord(token),)))
            if seed in self.faults:
                raise self.faults[seed]
        except asyncio.CancelledError:
            self.aborted.append(seed)
            raise
        finally:
            self.running -= 1
        logprobs = tuple(TokenLogprob(token, -0.5, ((token, -0.5),)) for token in text)
        return Completion(text, len(text), "stop", None if sampling.logprobs is None else logprobs)

    async def score_prefix(self, tokens: list[int]) -> list[float]:
        await _turns(self.prefix_pause)
        outputs = await super().score_prefix(tokens)
        return [3 * output for output in outputs] if self.prefix_outputs is None else self.prefix_outputs


class ScriptedEngines(FakeEngines):
    """Answers with one of several texts, by the seed, and keeps what it was given to continue and to score.

    Args:
        texts: The texts. One that ends with ``…`` is cut off there by the length limit.
    """

    def __init__(self, *texts: str) -> None:
        super().__init__(context=4000)
        self.texts = texts
        self.prompts: list[str] = []
        self.scored: list[str] = []

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        await super().generate(prompt, sampling)
        self.prompts.append("".join(map(chr, prompt)))
        text = self.texts[sampling.seed % len(self.texts)]
        for token in re.findall("|".join([*MARKS, "."]), text.rstrip("…"), re.DOTALL) if listen else ():
            listen(Delta(token, (), (MARKS.get(token) or ord(token),)))
        return Completion(text.rstrip("…"), len(text), "length" if text.endswith("…") else "stop")

    async def score(self, tokens: Sequence[list[int]]) -> list[float]:
        self.scored += ["".join(map(chr, each)) for each in tokens]
        return await super().score(tokens)


class WritingEngines(FakeEngines):
    """Writes one token after another: a random one of several under a seed, and a full stop at the end.

    The reward of what it writes is the last digit, and the prefix scorer expects that of what is not finished.

    Args:
        alphabet: The characters. One that the tokenizer spells in two bytes is completed by the next draw.
        context: As in FakeEngines.
    """

    def __init__(self, alphabet: str = "0123456789.", context: int = 400) -> None:
        super().__init__(context)
        self.alphabet = alphabet
        self.blocks = 0
        """Continuations that were drawn."""
        self.die_after: int | None = None
        """The number of continuations after which the engine dies."""

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        if self.die_after is not None and self.blocks >= self.die_after:
            self.dead = True
        await super().generate(prompt, sampling)
        self.blocks += 1
        rng, written, pending = random.Random(sampling.seed), list[int](), list[int]()
        if prompt[-1] == "é".encode()[0]:
            pending = ["é".encode()[1]]
        while len(written) < sampling.max_tokens and "." not in map(chr, written):
            if not pending:
                is_early = len(written) < sampling.min_tokens
                letter = self.alphabet[0] if sampling.greedy else rng.choice(self.alphabet.rstrip("." * is_early))
                pending = list(letter.encode())
            written.append(pending.pop(0))
            if listen:
                listen(Delta("?", token_ids=(written[-1],)))
        logprobs = tuple(TokenLogprob(chr(token), -0.5, ((chr(token), -0.5),)) for token in written)
        ended = written[-1] == ord(".")
        text = bytes(written).decode(errors="replace").rstrip(".")
        return Completion(
            text, len(written), "stop" if ended else "length", None if sampling.logprobs is None else logprobs
        )


async def _turns(count: int) -> None:
    """Wait for turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


def _last_digit(text: str) -> float:
    return float(text[-1]) if text[-1:].isdecimal() else -1.0


def recalibrated(served: ServedBundle) -> ServedBundle:
    """The same bundle with a calibration by another reward model."""
    calibration = served.bundle.calibration.model_copy(update={"reward_model": "another"})
    return replace(served, bundle=replace(served.bundle, calibration=calibration))


def fake_served(
    anchors: Sequence[float] = range(10),
    weights: Mapping[str, float] | None = None,
    prompts: Sequence[str] = (KNOWN,),
    scorer: ScorerRecord | None = None,
    tokenizer: CharacterTokenizer | None = None,
    alignment: Alignment = STRONG,
) -> ServedBundle:
    """A bundle in memory that has calibrated each of ``prompts`` with ``anchors``.

    With ``weights`` it has so many reward models, every other of which says 9 less what the others say.
    """
    tokenizer = tokenizer or CharacterTokenizer()
    keys = tuple(prompt_key(render_prompt(tokenizer, [{"role": "user", "content": prompt}])) for prompt in prompts)
    weights = weights or {"reward": 1.0}
    rewards = np.array([anchors] * len(keys), dtype=float)
    tables = [CalibrationTable(keys, 9 - rewards if i % 2 else rewards) for i in range(len(weights))]
    table = tables[0]
    record = CalibrationRecord(
        reference="r",
        reward_model="w",
        chat_template="t",
        sampling=LAW,
        samples=table.samples,
        prompts=len(keys),
        estimator=Estimator.JEFFREYS,
        resolution=1e-4,
    )
    manifest = Manifest(
        format=3,
        name="fake",
        created="now",
        policies={"fake": PolicyRecord(path="policy", digest="p", **dict(alignment))},
        reference="r",
        reward_model="w",
        calibration="c",
        sampling=LAW,
        libraries={},
        files={},
    )
    return ServedBundle(
        Bundle(Path("nowhere"), manifest, record, Combination(tuple(tables), tuple(weights.values())), scorer=scorer),
        (tokenizer, dict.fromkeys(weights, tokenizer)),
        {"fake": "best-of-4"},
    )
