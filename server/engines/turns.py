"""Separates turns with vLLM's parsers: into reasoning, the answer, and calls of tools."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from infalign.errors import InvalidValue, one_line
from infalign.reasoning import Reasoning, list_parsers, parser_class
from server.engines.base import Completion, Delta, FinishReason, RequestFailed, Sampling, ToolCall
from server.engines.environment import log_through_root, prepare_environment

REASONING_OPTION, TOOL_OPTION = "--reasoning-parser", "--tool-parser"
TRIAL_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
"""The tool with which a parser of calls is tried."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A response, separated into its parts."""

    completion: Completion
    """The response as it was drawn."""
    answer: str
    """The text for the client, without reasoning and without calls."""
    scored: str | None
    """The text that the reward models read: all but the reasoning. None if the length limit came before the answer."""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def finish_reason(self) -> FinishReason | Literal["tool_calls"]:
        """Why the turn ended."""
        return "tool_calls" if self.tool_calls else self.completion.finish_reason


@dataclass(frozen=True)
class TurnParser:
    """Separates the turns that answer one prompt."""

    tokenizer: Any = None
    """The policies' tokenizer."""
    reasoning_parser: str | None = None
    """vLLM's name of the parser of reasoning. None leaves reasoning in the answer."""
    tool_parser: str | None = None
    """vLLM's name of the parser of tool calls. None leaves calls in the answer."""
    prompt: Sequence[int] = ()
    """Token ids of the prompt."""
    prefill: str = ""
    """The start of the turn, if the prompt has it."""
    tools: Sequence[Mapping[str, Any]] = ()
    """The tools that may be called."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template. Some of them turn reasoning off."""
    parallel_calls: bool = True
    """Whether a turn may have more than one call."""

    @property
    def is_plain(self) -> bool:
        """Whether turns have one part, the answer."""
        return self.reasoning_parser is None and not self._calls

    def check(self) -> None:
        """Try the parsers.

        Raises:
            RequestFailed: A parser does not fit the tokenizer, or does not read text.
        """
        _ = self._needs
        if self.reasoning_parser:
            with self._guard():
                self._reasoning.split("x")
        if self._calls:
            self._extract_calls("x")

    def adapt(self, sampling: Sampling) -> Sampling:
        """Add to ``sampling`` what the parsers need of the engine."""
        return sampling if self.is_plain else replace(sampling, **self._needs)

    def read(self, completion: Completion) -> Turn:
        """Separate a response.

        Raises:
            RequestFailed: A parser failed.
        """
        if self.is_plain:
            return Turn(completion, completion.text, completion.text)
        with self._guard():
            text = completion.text
            reasoning, content = self._reasoning.read(text) if self.reasoning_parser else (None, text)
        if content is None and completion.finish_reason == "length":
            return Turn(completion, "", None, reasoning)
        content = content or ""
        answer, tool_calls = self._extract_calls(content) if self._calls else (content, ())
        return Turn(completion, answer, content, reasoning, tool_calls)

    def strip_prefill(self) -> str:
        """Return the part of the prefill that belongs to the answer.

        Raises:
            RequestFailed: A parser failed.
        """
        if not self.prefill or self.reasoning_parser is None:
            return self.prefill
        with self._guard():
            if not any(mark in self.prefill for mark in self._reasoning.marks):
                return self.prefill
            return self._reasoning.split(self.prefill)[1] or ""

    def stream(self, listen: Callable[[Delta], None]) -> Callable[[Delta | None], None]:
        """Create the listener that separates the parts of a growing response.

        Args:
            listen: Called with the new text of each part.

        Returns:
            The listener. It must be called with None at the end.
        """
        parser = None if self.is_plain else self._create(reasons=not self._starts_with_answer)
        if parser is None:
            return lambda delta: listen(delta) if delta and (delta.text or delta.logprobs) else None

        last: Delta | None = None  # parsers must be told which part is the last one

        def separate(delta: Delta | None) -> None:
            nonlocal last
            new, last, is_end = last, delta, delta is None
            if new is None:
                return
            with self._guard():
                parts = parser.parse_delta(
                    new.text, list(new.token_ids), self._request, list(self.prompt), finished=is_end
                )
            reasoning, content, calls = (parts.reasoning, parts.content, parts.tool_calls) if parts else ("", "", ())
            tool_calls = tuple(
                call.model_dump(exclude_none=True) for call in calls if self.parallel_calls or call.index == 0
            )
            if content or reasoning or tool_calls or new.logprobs:
                listen(Delta(content or "", new.logprobs, reasoning=reasoning or "", tool_calls=tool_calls))

        return separate

    def _extract_calls(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Take the calls out of a text without reasoning."""
        with self._guard():
            found = self._create().tool_parser.extract_tool_calls(text, self._request)
        if not found.tools_called:
            return text, ()
        calls = [ToolCall(call.id, call.function.name, call.function.arguments) for call in found.tool_calls]
        rest = found.content or ""
        return "" if rest.isspace() else rest, tuple(calls[: None if self.parallel_calls else 1])

    def _create(self, reasons: bool = True) -> Any:
        """Create a parser. It is None if there is nothing to parse."""
        with self._guard():
            kind = parser_class(self.reasoning_parser if reasons else None, self.tool_parser if self._calls else None)
            return kind and kind(self.tokenizer, self._request.tools, chat_template_kwargs=dict(self.variables))

    @property
    def _calls(self) -> bool:
        return self.tool_parser is not None and bool(self.tools)

    @cached_property
    def _reasoning(self) -> Reasoning:
        return Reasoning(lambda: self._create().reasoning_parser, self._request, self.prompt, self.prefill)

    @cached_property
    def _starts_with_answer(self) -> bool:
        """Whether reasoning is over where the response begins."""
        with self._guard():
            return self.reasoning_parser is None or self._reasoning.starts_with_answer

    @cached_property
    def _needs(self) -> dict[str, Any]:
        """The fields of :class:`Sampling` that the parsers need."""
        with self._guard():
            parser, request = self._create(), self._request.model_copy()
            for part in (parser.reasoning_parser, parser.tool_parser):
                request = part.adjust_request(request) if part else request
            if not self.reasoning_parser:
                return {"skip_special_tokens": request.skip_special_tokens, "reasoning_ended": None}
            skips = self._reasoning.skips_special_tokens(self.tokenizer, request)
            return {"skip_special_tokens": skips, "reasoning_ended": self._reasoning.starts_with_answer}

    @cached_property
    def _request(self) -> Any:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        tools = {"tools": list(self.tools), "tool_choice": "auto"} if self.tools else {}
        return ChatCompletionRequest(messages=[], parallel_tool_calls=self.parallel_calls, **tools)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except RequestFailed:
            raise
        except Exception as error:  # parsers meet whatever a model writes; the text of the error may quote it
            names = " or ".join(filter(None, (self.reasoning_parser, self.tool_parser)))
            raise RequestFailed(f"the parser {names} failed at a response ({type(error).__name__})") from error


class TurnParsers:
    """The parsers that the operator has chosen.

    Args:
        tokenizer: The policies' tokenizer.
        reasoning_parser: vLLM's name of the parser of reasoning, if there is one.
        tool_parser: vLLM's name of the parser of tool calls, if there is one.
        calibrated: The parser of reasoning with which the bundle was calibrated, if there was one.

    Raises:
        InvalidValue: vLLM has no such parser, or it does not fit the tokenizer.
    """

    def __init__(
        self,
        tokenizer: Any,
        reasoning_parser: str | None = None,
        tool_parser: str | None = None,
        calibrated: str | None = None,
    ) -> None:
        self._tokenizer, self._reasoning_parser, self._tool_parser = tokenizer, reasoning_parser, tool_parser
        self._calibrated = calibrated
        for option, name, names in _choices(reasoning_parser, tool_parser):
            from vllm.tokenizers.hf import get_cached_tokenizer

            if name not in names:
                raise InvalidValue(option, name, ", ".join(names))
            self._tokenizer = get_cached_tokenizer(tokenizer)  # parsers ask for the vocabulary again and again
            trial = TurnParser(
                self._tokenizer,
                reasoning_parser if option == REASONING_OPTION else None,
                tool_parser if option == TOOL_OPTION else None,
                tools=(TRIAL_TOOL,),
            )
            try:
                trial.check()
            except RequestFailed as error:
                reason = one_line(error.__cause__ or error)
                raise InvalidValue(option, name, f"a parser that fits the policy and reads text ({reason})") from error

    def for_prompt(self, prompt: Sequence[int], **fields: Any) -> TurnParser:
        """Return the parser of the turns that answer a prompt.

        Args:
            prompt: Token ids of the prompt.
            fields: Further fields of :class:`TurnParser`.
        """
        return TurnParser(self._tokenizer, self._reasoning_parser, self._tool_parser, prompt, **fields)

    def adapt_key(self, key: str, has_tools: bool) -> str:
        """Make the key of a prompt depend on the parsers, as the rewards of its responses do.

        So a calibration that was made with other parsers is never used. Those of a bundle were made with the bundle's
        parser of reasoning, or with none.

        Args:
            key: The key of the rendered prompt.
            has_tools: Whether tools may be called.
        """
        reasoning_parser = None if self._reasoning_parser == self._calibrated else self._reasoning_parser
        names = (reasoning_parser or "", (has_tools and self._tool_parser) or "")
        return hashlib.sha256("/".join((key, *names)).encode()).hexdigest()[: len(key)] if any(names) else key


def _choices(reasoning_parser: str | None, tool_parser: str | None) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the option, its value and vLLM's names for each parser that is chosen."""
    if reasoning_parser is None and tool_parser is None:
        return
    prepare_environment()
    log_through_root()
    if reasoning_parser is not None:
        yield REASONING_OPTION, reasoning_parser, list_parsers()
    if tool_parser is not None:
        from vllm.tool_parsers import ToolParserManager

        for module in ("vllm.parser", "vllm.tool_parsers"):
            # They log a stack trace for every call that a model does not write properly.
            logging.getLogger(module).setLevel(logging.CRITICAL)
        yield TOOL_OPTION, tool_parser, ToolParserManager.list_registered()
