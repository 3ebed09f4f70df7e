"""Reads what rewards score of responses: the answers without reasoning, where a run or a bundle has a parser."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from infalign.reasoning import AnswerProcess, AnswerReader, Answers
from infalign.templates import Message
from training.sampler import tokenise_prompts


@dataclass(frozen=True)
class ScoredTexts:
    """Reads the answers that rewards score."""

    tokenizer: Any
    """Tokenizer of the reference, with its chat template."""
    answers: Answers
    """The parser."""

    @classmethod
    def load(cls, parser: str | None, reference: Path, has_vllm: bool = False) -> "ScoredTexts | None":
        """Start a parser.

        Args:
            parser: vLLM's name of it, if there is one.
            reference: Directory of the reference.
            has_vllm: Whether this process runs vLLM anyway. Otherwise the parser gets a process of its own.

        Returns:
            None without a parser: rewards score responses as they are.

        Raises:
            InvalidValue: vLLM has no such parser, or it does not fit the reference.
        """
        if parser is None:
            return None
        tokenizer = AutoTokenizer.from_pretrained(reference, trust_remote_code=False)
        return cls(tokenizer, (AnswerReader if has_vllm else AnswerProcess)(parser, reference))

    def read(self, prompts: Sequence[Sequence[Message]], responses: Sequence[Sequence[int]]) -> list[str | None]:
        """Read the answers of responses.

        Args:
            prompts: Conversations.
            responses: Token ids of a response to each of them, with the end token unless it was cut off.

        Returns:
            The answers as text. None where the reasoning did not end before the length limit.
        """
        return self.answers.read(tokenise_prompts(self.tokenizer, prompts), responses)

    def read_all(self, prompts: Sequence[Sequence[Message]], responses: Sequence[Sequence[int]]) -> list[str]:
        """Read the answers of responses. The answer is empty where the reasoning did not end.

        Rewards score the empty answer then. So a policy whose reasoning does not end loses by it.
        """
        return [answer or "" for answer in self.read(prompts, responses)]
