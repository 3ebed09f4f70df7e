"""Separates reasoning from answers with vLLM's parsers.

Importing vLLM takes some fifteen seconds and changes torch's settings. So whoever trains asks a process of its own
(:class:`AnswerProcess`), and whoever runs vLLM anyway uses :class:`AnswerReader`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from infalign.child import Child, ChildFailed
from infalign.errors import EngineFailed, InvalidValue, one_line
from infalign.imports import quick_imports
from infalign.quiet import keep_libraries_quiet

PROCESS = "infalign.reasoning_process"
PARAM = "rollouts.reasoning_parser"
"""The key of a config that names the parser."""
START_SECONDS, CALL_SECONDS = 300.0, 120.0
"""Longest times that a process may take to start, and to read :data:`BATCH` responses."""
BATCH = 512
"""Responses that a process is sent at a time."""
ATTEMPTS = 4
"""How often a response of the reference is drawn if its reasoning does not end before the length limit."""


@dataclass(frozen=True)
class Reasoning:
    """Separates the reasoning of the responses to one prompt."""

    create: Callable[[], Any]
    """Creates vLLM's parser of reasoning. Parsers have a state, so each text takes a new one."""
    request: Any
    """A request of vLLM's, which parsers ask for."""
    prompt: Sequence[int] = ()
    """Token ids of the prompt."""
    prefill: str = ""
    """The start of the turn, if the prompt has it."""

    def split(self, text: str) -> tuple[str | None, str | None]:
        """Split a text into reasoning and the rest, which is None if the reasoning does not end."""
        reasoning, content = self.create().extract_reasoning(text, self.request)
        return reasoning or None, content or None

    def read(self, text: str) -> tuple[str | None, str | None]:
        """Split a response, which may be an answer without reasoning.

        Parsers look for the end of reasoning in the whole prompt, where an earlier turn may have ended its own. So a
        response that has a mark of reasoning is parsed in any case.
        """
        marked = not self.prefill and (not self.marks or any(mark in text for mark in self.marks))
        return (None, text) if self.starts_with_answer and not marked else self.split(text)

    @cached_property
    def marks(self) -> list[str]:
        """The texts that begin and end reasoning, if the parser has fixed ones."""
        parser = self.create()
        return [mark for mark in (parser.reasoning_start_str, parser.reasoning_end_str) if mark]

    @cached_property
    def starts_with_answer(self) -> bool:
        """Whether reasoning is over where the response begins."""
        parser = self.create()
        if self.prefill:
            end = parser.reasoning_end_str
            return bool(end and end in self.prefill) or not any(mark in self.prefill for mark in self.marks)
        return bool(parser.is_reasoning_end(list(self.prompt)))

    def skips_special_tokens(self, tokenizer: Any, request: Any) -> bool:
        """Whether the parser reads texts without special tokens. Its marks may be such tokens.

        Args:
            tokenizer: The policy's tokenizer.
            request: The request after all parsers have adjusted it.
        """
        return request.skip_special_tokens and not set(self.marks) & set(getattr(tokenizer, "all_special_tokens", ()))


class Answers(Protocol):
    """Reads answers: :class:`AnswerReader` or :class:`AnswerProcess`."""

    def read(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[str | None]:
        """Read the answers of responses.

        Args:
            prompts: Token ids of the prompt of each response.
            responses: Token ids of the responses, with the end token unless a response was cut off.

        Returns:
            The text of each answer, or None if the response was cut off before its reasoning ended.
        """


class AnswerReader:
    """Reads answers in this process.

    Args:
        name: vLLM's name of the parser.
        directory: Directory of the policy, whose tokenizer is used.

    Raises:
        InvalidValue: vLLM has no such parser, or it does not fit the tokenizer.
    """

    def __init__(self, name: str, directory: Path) -> None:
        check_name(name)
        from transformers import AutoTokenizer
        from vllm.tokenizers.hf import get_cached_tokenizer

        self._name = name
        self._tokenizer: Any = get_cached_tokenizer(AutoTokenizer.from_pretrained(directory, trust_remote_code=False))
        try:
            trial = self._separator(())
            trial.split("x")
            request = trial.request.model_copy()
            self._skips = trial.skips_special_tokens(self._tokenizer, trial.create().adjust_request(request))
        except Exception as error:  # of whatever type: parsers check as they like
            requirement = f"a parser that fits the policy and reads text ({one_line(error)})"
            raise InvalidValue(PARAM, name, requirement) from error

    def read(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[str | None]:
        """Read the answers of responses (:meth:`Answers.read`)."""
        separators: dict[tuple[int, ...], Reasoning] = {}
        answers: list[str | None] = []
        for prompt, response in zip(map(tuple, prompts), responses, strict=True):
            separator = separators.get(prompt) or separators.setdefault(prompt, self._separator(prompt))
            is_complete = list(response[-1:]) == [self._tokenizer.eos_token_id]
            tokens = response[:-1] if is_complete else response
            text = self._tokenizer.decode(list(tokens), skip_special_tokens=self._skips)
            _, content = separator.read(text)
            answers.append("" if content is None and is_complete else content)
        return answers

    def _separator(self, prompt: Sequence[int]) -> Reasoning:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        def create() -> Any:
            return parser_class(self._name, None)(self._tokenizer, None, chat_template_kwargs={}).reasoning_parser

        return Reasoning(create, ChatCompletionRequest(messages=[]), prompt)


@dataclass(frozen=True)
class AnswerProcess:
    """Reads answers in a process of its own.

    Raises:
        InvalidValue: vLLM is not installed or has no such parser, or it does not fit the tokenizer.
        EngineFailed: The process does not start.
    """

    name: str
    """vLLM's name of the parser."""
    directory: Path | None
    """Directory of the policy, whose tokenizer is used. None only checks the name."""
    _child: Child = field(init=False)

    def __post_init__(self) -> None:
        if find_spec("vllm") is None:
            raise InvalidValue(PARAM, self.name, "null, unless `pip install 'infalign[cpu]'` (or gpu)")
        arguments = (self.name, str(self.directory or ""))
        object.__setattr__(self, "_child", Child(f"the parser {self.name}", PROCESS, *arguments))
        try:
            self._child.start(START_SECONDS)
            requirement = self._child.call(None, CALL_SECONDS)
        except (ChildFailed, TimeoutError) as error:
            raise EngineFailed(str(error)) from error
        if requirement:
            self.close()
            raise InvalidValue(PARAM, self.name, requirement)

    def read(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[str | None]:
        """Read the answers of responses (:meth:`Answers.read`).

        Raises:
            EngineFailed: The parser failed or hangs.
        """
        answers: list[str | None] = []
        try:
            for start in range(0, len(responses), BATCH):
                part = slice(start, start + BATCH)
                answers += self._child.call((prompts[part], responses[part]), CALL_SECONDS)
        except (ChildFailed, TimeoutError) as error:
            raise EngineFailed(str(error)) from error
        return answers

    def close(self) -> None:
        """End the process."""
        self._child.close()


def list_parsers() -> list[str]:
    """List the names of vLLM's parsers of reasoning. vLLM is imported."""
    keep_libraries_quiet()
    with quick_imports():
        from vllm.reasoning import ReasoningParserManager

    for module in ("vllm.parser", "vllm.reasoning"):
        logging.getLogger(module).setLevel(logging.CRITICAL)  # they log whatever a model does not write properly
    return list(ReasoningParserManager.list_registered())


def check_name(name: str) -> None:
    """Check that vLLM has a parser of a name. vLLM is imported.

    Raises:
        InvalidValue: There is no such parser.
    """
    if name not in (names := list_parsers()):
        raise InvalidValue(PARAM, name, ", ".join(names))


@cache
def parser_class(reasoning_parser: str | None, tool_parser: str | None) -> Any:
    """Find vLLM's class that parses both reasoning and calls of tools.

    Args:
        reasoning_parser: Name of the parser of reasoning, if there is one.
        tool_parser: Name of the parser of calls, if there is one.

    Returns:
        The class, or None without parsers.
    """
    from vllm.parser import ParserManager

    return ParserManager.get_parser(tool_parser, reasoning_parser, enable_auto_tools=True)
