"""Creates the decoder's job for a request, and checks it against the key's roles and the operator's limits."""

import random
from collections.abc import Sequence

from starlette.requests import Request

from infalign.controlled import Controlled, ServedProcedure
from server.access.callers import Caller
from server.access.disclosure import Disclosure
from server.decoding.catalogue import Choice
from server.decoding.jobs import Job
from server.decoding.reader import Conversation
from server.engines import Sampling, Structure
from server.errors import BadRequest
from server.middleware.audit import ProbeCall
from server.protocol.messages import ChatFields, Message, MessagesOrPrompt
from server.protocol.requests import ChatRequest, GenerationRequest, ResponseFormat
from server.routes.blocks import check_controlled
from server.routes.dependencies import read_caller
from server.routes.rules import check_rejection, make_rule
from server.routes.scorer import check_calibrate
from server.routes.serving import Serving

MAX_LOGPROBS = 100_000
"""The most log-probabilities of one request: candidates x max_tokens x (1 + alternatives)."""


async def make_job(
    serving: Serving,
    request: Request,
    body: GenerationRequest,
    conversation: Conversation,
    procedure: ServedProcedure,
    field: str,
    *,
    draws: int | None = None,
    max_tokens: int | None = None,
    logprobs: int | None = None,
) -> Job:
    """Create the job for a request. Fields that the request leaves out have the values of the bundle's sampling law.

    Args:
        serving: The objects that serve requests.
        request: The HTTP request.
        body: The request's body.
        conversation: The messages or the prompt in the body.
        procedure: The procedure that the body asks for. The model's name may ask for another one.
        field: The body's field that sets N.
        draws: N. By default it is the procedure's. Under standard and controlled decoding, it is the number of answers.
        max_tokens: The largest length of a response. By default it is the sampling law's.
        logprobs: How many alternatives to each token are reported. None reports no log-probabilities.

    Returns:
        The job. Its seed is random unless the request has one.

    Raises:
        UnknownModel: There is no such model.
        Forbidden: The key lacks the role that the procedure or the candidates require.
        BadRequest: The request exceeds the operator's limits, selects more candidates than it draws, has a stopping
            rule, early rejection or fields of controlled decoding that do not fit, has messages that the chat template
            does not accept, or needs a prefix scorer where there is none.
    """
    check_calibrate(serving, body.calibrate)
    choice = serving.catalogue.choose(body.model, procedure)
    rule = make_rule(body, serving.catalogue, choice.procedure)
    early_rejection = check_rejection(body, choice.procedure, serving)
    if choice.procedure != procedure:
        field = "model"
    n = choice.draws(procedure, draws)
    if body.top > n:
        top = body.TOP_FIELD
        raise BadRequest(f"{top}: got {body.top}, accepted: at most {n}, the candidates of {choice.procedure}", top)
    caller = await _check_permission(serving, request, body, conversation, choice, n, field)
    if isinstance(choice.procedure, Controlled):
        check_controlled(serving, body, conversation, choice.procedure, n, field)
    else:
        serving.check_n(field, n)
    limit = serving.law.max_tokens if max_tokens is None else max_tokens
    _check_limits(body, n, limit, logprobs, serving.settings.deadline)
    sampling = _sampling(serving, body, choice.policy, limit, logprobs)
    # Greedy sampling makes all candidates the same, so nothing is selected.
    warning = None if sampling.greedy else serving.judged.check(field, choice.policy, choice.procedure, n)
    return Job(
        conversation,
        choice.procedure,
        sampling,
        draws=n,
        min_candidates=n if body.min_candidates is None else body.min_candidates,
        seconds=serving.settings.deadline if body.timeout is None else body.timeout,
        calibrate=body.calibrate,
        top=body.top,
        answers=body.top if body.min_candidates is None else body.min_candidates,
        sees_all=caller.has_role("probe"),
        rule=rule,
        replaces_failures=body.min_candidates is not None,
        early_rejection=early_rejection,
        warnings=(warning,) if warning else (),
    )


def make_conversation(serving: Serving, body: ChatRequest | MessagesOrPrompt) -> Conversation:
    """Create the conversation from a request's messages or prompt.

    Raises:
        BadRequest: The request has tools, but nothing on this server reads their calls.
    """
    if isinstance(body, MessagesOrPrompt) and body.prompt is not None:
        return Conversation(prompt=body.prompt)
    return make_chat(serving, body, body.messages or [])


def make_chat(serving: Serving, body: ChatFields, messages: Sequence[Message]) -> Conversation:
    """Create a conversation from messages.

    Args:
        serving: The objects that serve requests.
        body: The request, with the fields that say how messages become a prompt.
        messages: The messages.

    Raises:
        BadRequest: The request has tools, but nothing on this server reads their calls.
    """
    if body.offered_tools and serving.settings.tool_parser is None:
        raise BadRequest(
            f"tools: got a list of {len(body.offered_tools)}, accepted: none, as this server was started without "
            "--tool-parser, the option that lets it read calls",
            "tools",
        )
    return Conversation(
        messages=tuple(message.template_message for message in messages),
        tools=body.offered_tools,
        variables=body.chat_template_kwargs,
        is_continued=body.continue_final_message,
        parallel_calls=body.parallel_tool_calls,
    )


async def _check_permission(
    serving: Serving,
    request: Request,
    body: GenerationRequest,
    conversation: Conversation,
    choice: Choice,
    draws: int,
    field: str,
) -> Caller:
    """Note for the audit log what requires the role ``probe``. Raise Forbidden if the key lacks a role."""
    caller, procedure = read_caller(request), choice.procedure
    disclosure = Disclosure(procedure, draws, body.top, body.return_candidates)
    # Without keys every caller has every role. Then only worst-of-n is audited.
    if disclosure.is_worst_of_n or (disclosure.unfiltered and serving.settings.keys is not None):
        key = await serving.decoder.client.reader.key(conversation)
        request.scope["audit"].call = ProbeCall(
            caller.name, body.user, choice.policy, str(procedure), draws, key, disclosure.unfiltered
        )
    if disclosure.is_worst_of_n:
        # At /v1/worst-of-n, the endpoint and not a field asks for the procedure.
        caller.require("probe", str(procedure), None if field == "n" else field)
    if body.return_candidates:
        caller.require("probe", "unfiltered candidates", "return_candidates")
    if disclosure.exceeds_half:
        more = 2 * body.top
        by = f":best-of-{more}" if field == "model" else f"{body.DRAWS_FIELD}: {more}"
        alternative = f"the best {body.top} of {more} ({by}) take no role but generate"
        caller.require("probe", f"{body.top} of {draws} candidates", body.TOP_FIELD, alternative)
    return caller


def _check_limits(body: GenerationRequest, n: int, limit: int, logprobs: int | None, deadline: float) -> None:
    """Raise BadRequest unless the request's numbers fit each other and the operator's ``deadline`` (seconds)."""
    if body.timeout is not None and body.timeout > deadline:
        raise BadRequest(f"timeout: got {body.timeout:g}, accepted: at most {deadline:g}", "timeout")
    if body.min_candidates is not None and body.min_candidates > n:
        raise BadRequest(f"min_candidates: got {body.min_candidates}, accepted: at most {n}", "min_candidates")
    if body.min_tokens > limit:
        raise BadRequest(f"min_tokens: got {body.min_tokens}, accepted: at most max_tokens, {limit}", "min_tokens")
    if logprobs is not None and (entries := n * limit * (1 + logprobs)) > MAX_LOGPROBS:
        raise BadRequest(
            f"logprobs: {n} candidates of up to {limit} tokens (max_tokens) with {1 + logprobs} log-probabilities "
            f"each make {entries}, accepted: at most {MAX_LOGPROBS}",
            "logprobs",
        )


def _sampling(
    serving: Serving, body: GenerationRequest, policy: str, max_tokens: int, logprobs: int | None
) -> Sampling:
    return Sampling.from_law(
        serving.law,
        policy=policy,
        seed=random.getrandbits(31) if body.seed is None else body.seed,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        max_tokens=max_tokens,
        min_p=body.min_p,
        min_tokens=body.min_tokens,
        stop=body.stops,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=tuple((int(token), bias) for token, bias in body.logit_bias.items()),
        logprobs=logprobs,
        structure=_structure(body.response_format),
    )


def _structure(response_format: ResponseFormat | None) -> Structure | None:
    if response_format is None or response_format.type == "text":
        return None
    return Structure(response_format.type, response_format.json_schema.schema_ if response_format.json_schema else None)
