"""Engines that are vLLM servers, reached over HTTP.

Policies, each reward model, the reference and the prefix scorer can have any number of servers.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path

from infalign.errors import InvalidValue, RewardMismatch
from server.concurrency import gather_all
from server.engines import wire
from server.engines.base import Completion, Delta, EnginesDown, NextToken, Refused, Sampling, Structure, compute_reward
from server.engines.pool import Pool, Server
from server.engines.roles import Roles, adapter_base, base_model, classifier_context, group_urls
from server.engines.trial import RewardTrial, fitting_examples
from server.engines.wire import BadAnswer
from server.settings import Settings

log = logging.getLogger("infalign.server")
REMINDER_SECONDS = 60.0
"""Seconds between two log lines about servers that the start waits for."""
TRIAL_SAMPLING = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=1, seed=0, policy=None)
"""Sampling of a policy's trial: one token."""
TRIAL_TOKENS = [0]
"""Prompt of a trial."""


class RemoteEngines:
    """Engines that are vLLM servers. Implements :class:`Engines`.

    Args:
        settings: The operator's settings, with the addresses of the servers.
        policies: Names of the policies. A server is asked for a policy by this name. If there is one policy and a
            server serves one model, that model is the policy, whatever its name.
        reward_models: What the outputs of each reward model are worth (:func:`infalign.files.score_values`), by its
            name, in the order of their rewards.
        context: Largest length of prompt and response, in tokens, until the servers have reported theirs.
        reference: Name of the policy that is the reference itself, if one is.
        adapters: Whether the policies are adapters. Then a server must have each by name. Otherwise it would answer
            with the base model.
        trials: By name of the reward model, the trial that each of its servers must pass before it is asked.
        interval: Seconds between two examinations of a server.
        scorer_outputs: Number of outputs of the prefix scorer, if there is one.

    Raises:
        InvalidValue: A role has no server, or servers are given for a model that does not exist.
    """

    def __init__(
        self,
        settings: Settings,
        policies: Sequence[str],
        reward_models: Mapping[str, tuple[float, ...]],
        context: int,
        reference: str | None = None,
        adapters: bool = False,
        trials: Mapping[str, RewardTrial] | None = None,
        interval: float = 5.0,
        scorer_outputs: int = 0,
    ) -> None:
        if not settings.policy_urls:
            raise InvalidValue("--policy-urls", None, "addresses of the policies' servers, as for the other models")
        self._urls = group_urls(settings.reward_urls, tuple(reward_models))
        self._score_values, self._scorer_outputs = reward_models, scorer_outputs
        self._settings, self._policies, self._reference, self._interval = settings, tuple(policies), reference, interval
        self._is_single = len(self._policies) == 1 and not adapters
        self._bundle_context, self._trials = context, trials or {}
        self._mismatches: dict[Server, RewardMismatch] = {}
        self._roles: Roles | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch_task: asyncio.Task[list[None]] | None = None

    @property
    def context(self) -> int:
        """The smallest context that the servers have reported. Before they have, the bundle's."""
        if not (roles := self._roles):
            return self._bundle_context
        policy_contexts = [server.context for pool in (roles.policy, roles.reference) for server in pool.responders]
        other_contexts = [classifier_context(server) for pool in roles.classifiers for server in pool.responders]
        return min([*policy_contexts, *other_contexts], default=self._bundle_context)

    async def start(self) -> None:
        """Wait until each role has a server that does its work, without a time limit. It may be cancelled.

        Every server is examined once before this returns, so that the first one does not get all the work.

        Raises:
            RewardMismatch: All servers of a reward model give rewards that differ from the bundle's.
        """
        self._loop = asyncio.get_running_loop()
        self._mismatches.clear()
        self._roles = roles = Roles(
            Pool("policy", self._servers(self._settings.policy_urls), _try_policy, self._interval),
            tuple(
                Pool(f"reward model {name}", self._servers(urls), self._reward_trial(name), self._interval)
                for name, urls in self._urls.items()
            ),
            Pool("reference", self._servers(self._settings.reference_urls), _try_policy, self._interval),
            Pool("prefix scorer", self._servers(self._settings.scorer_urls), self._try_scorer, self._interval),
        )
        self._watch_task = watch_task = asyncio.create_task(gather_all([pool.watch() for pool in roles.pools]))
        reminder = self._loop.time() + REMINDER_SECONDS
        try:
            while (outages := self._outages(roles)) or not roles.is_examined:
                if roles.is_examined:
                    self._refuse_other_rewards(roles)
                if outages and self._loop.time() >= reminder:
                    log.warning("still waiting for %s", "; ".join(outages))
                    reminder += REMINDER_SECONDS
                await asyncio.wait([watch_task], timeout=0.1)
                if watch_task.done():
                    watch_task.result()
        except BaseException:
            self.stop()
            raise

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        has_output = asyncio.Event()
        listener = listen and _set_on_output(has_output, listen)

        async def draw(server: Server, model: str) -> Completion:
            return await wire.complete(server.client, model, prompt, sampling, listener, server.watch.note_output)

        pool, model_of = self._find_policy(sampling.policy)
        # The seed makes another server draw the same response, but text that was passed on cannot be passed on again.
        return await pool.ask(draw, model_of, lambda: not has_output.is_set())

    async def check_structure(self, structure: Structure) -> None:
        """Do nothing. Each server checks structures itself."""

    async def score(self, tokens: Sequence[list[int]]) -> list[float]:
        async def score_with(pool: Pool, values: tuple[float, ...], text: list[int]) -> float:
            async def ask(server: Server, model: str) -> float:
                return await _score(server, model, text, values)

            return await pool.ask(ask, base_model)

        each = zip(self._get_roles().rewards, self._score_values.values(), tokens, strict=True)
        return await gather_all([score_with(*one) for one in each])

    async def next_logprobs(self, prompt: list[int], tokens: Sequence[int]) -> NextToken:
        async def ask(server: Server, model: str) -> NextToken:
            return await wire.next_logprobs(server.client, model, prompt, tokens)

        pool, model_of = self._find_policy(None)
        return await pool.ask(ask, model_of)

    async def score_prefix(self, tokens: list[int]) -> list[float]:
        async def ask(server: Server, model: str) -> list[float]:
            return await self._read_prefix(server, model, tokens)

        pool = self._get_roles().scorer
        if not pool.servers:
            raise EnginesDown("no server has the prefix scorer: give --scorer-urls")
        return await pool.ask(ask, base_model)

    async def load(self, policy: str, adapter: Path) -> None:
        raise Refused("these engines are other servers; load it there, and start this server with a bundle that has it")

    async def unload(self, policy: str) -> None:
        """Do nothing. The servers decide which adapters they keep."""

    async def check(self) -> None:
        if outages := self._outages(self._get_roles()):
            raise EnginesDown("; ".join(outages))

    async def discard_failed(self) -> list[EnginesDown]:
        """Do nothing. None is started when it is needed."""
        return []

    def stop(self) -> None:
        """Close the connections. The servers go on."""
        self._roles = None
        if self._loop and self._watch_task and not self._loop.is_closed():
            # This may run in another thread than the event loop.
            self._loop.call_soon_threadsafe(self._watch_task.cancel)

    def _reward_trial(self, name: str) -> Callable[[Server], Awaitable[None]]:
        """Return the trial for a server of the reward model ``name``."""
        trial = self._trials.get(name)

        async def run(server: Server) -> None:
            async def score(tokens: list[int]) -> float:
                return await _score(server, base_model(server) or "", tokens, self._score_values[name])

            if trial is None:
                await score(TRIAL_TOKENS)
                return
            self._mismatches.pop(server, None)
            try:
                places = fitting_examples([trial], classifier_context(server))
                rewards = await gather_all([score(trial.tokens[place]) for place in places])
                trial.check(rewards, places, f"at {server.url}")
            except RewardMismatch as error:
                self._mismatches[server] = error
                raise

        return run

    async def _try_scorer(self, server: Server) -> None:
        await self._read_prefix(server, base_model(server) or "", TRIAL_TOKENS)

    async def _read_prefix(self, server: Server, model: str, tokens: list[int]) -> list[float]:
        outputs = await wire.score(server.client, model, tokens)
        if len(outputs) != self._scorer_outputs:
            raise BadAnswer(f"{len(outputs)} outputs of a prefix scorer that has {self._scorer_outputs}")
        return outputs

    def _refuse_other_rewards(self, roles: Roles) -> None:
        for pool in roles.rewards:
            mismatches = [self._mismatches[server] for server in pool.servers if server in self._mismatches]
            if mismatches and pool.outage(base_model):
                raise mismatches[0]

    def _get_roles(self) -> Roles:
        if self._roles is None:
            raise EnginesDown("the engines are not up")
        return self._roles

    def _servers(self, urls: Iterable[str]) -> list[Server]:
        # More connections than sequences at a time, so that a server always has a request waiting.
        connections = 2 * self._settings.max_sequences
        return [Server(url, self._settings.remote_timeout, connections) for url in urls]

    def _outages(self, roles: Roles) -> list[str]:
        """Explain which roles have no server that can be asked."""
        policies = [roles.policy.outage(self._policy_model(name)) for name in self._policies]
        others = [*roles.rewards, *(pool for pool in (roles.reference, roles.scorer) if pool.servers)]
        outages = [*policies, *(pool.outage(base_model) for pool in others)]
        return list(dict.fromkeys(outage for outage in outages if outage))

    def _find_policy(self, policy: str | None) -> tuple[Pool, Callable[[Server], str | None]]:
        """Return the pool that draws for a policy (None: the reference), and how to find the model on a server."""
        roles = self._get_roles()
        if policy is not None:
            return roles.policy, self._policy_model(policy)
        if roles.reference.servers:
            return roles.reference, base_model
        if self._reference is not None:
            return roles.policy, self._policy_model(self._reference)
        if not any(map(adapter_base, roles.policy.servers)):
            raise EnginesDown(
                "no server has the reference: give --reference-urls, or let those of the policies serve adapters on it"
            )
        return roles.policy, adapter_base

    def _policy_model(self, policy: str) -> Callable[[Server], str | None]:
        def model(server: Server) -> str | None:
            names = [card.id for card in server.cards]
            if policy in names:
                return policy
            return names[0] if len(names) == 1 and self._is_single else None

        return model


async def _score(server: Server, model: str, text: list[int], values: tuple[float, ...]) -> float:
    outputs = await wire.score(server.client, model, text)
    if len(outputs) != (len(values) or 1):  # another model than the bundle's; another server may have the right one
        raise BadAnswer(f"{len(outputs)} outputs of a reward model that has {len(values) or 1}")
    return compute_reward(outputs, values)


def _set_on_output(has_output: asyncio.Event, listen: Callable[[Delta], None]) -> Callable[[Delta], None]:
    """Return a listener that sets the event and then calls ``listen``."""

    def tell(delta: Delta) -> None:
        has_output.set()
        listen(delta)

    return tell


async def _try_policy(server: Server) -> None:
    await wire.complete(
        server.client, base_model(server) or "", TRIAL_TOKENS, TRIAL_SAMPLING, None, server.watch.note_output
    )
