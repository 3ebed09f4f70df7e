"""vLLM servers over HTTP: any number for the policies, for each reward model, and for the reference."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infalign.errors import InvalidValue, RewardMismatch
from server.concurrency import together
from server.engines import wire
from server.engines.base import Completion, Delta, EnginesDown, Refused, Sampling, Structure
from server.engines.pool import Pool, Server
from server.engines.trial import RewardTrial, fitting
from server.settings import Settings, split_name

log = logging.getLogger("infalign.server")
REMINDER_SECONDS = 60.0
TRIAL = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=1, seed=0, policy=None)
TRIED = [0]
"""Tokens of a trial."""


@dataclass(frozen=True)
class _Roles:
    """Who does what; ``reference`` is empty where nobody is given for it."""

    policy: Pool
    rewards: tuple[Pool, ...]
    reference: Pool

    @property
    def pools(self) -> tuple[Pool, ...]:
        return self.policy, *self.rewards, self.reference

    @property
    def examined(self) -> bool:
        """Whether every server has been, once."""
        return all(server.examined.is_set() for pool in self.pools for server in pool.servers)


class RemoteEngines:
    """Engines on other machines, or at least in other processes.

    Args:
        settings: where the servers are, and how long one may say nothing.
        policies: names of the policies. A server is asked for each by its name, as it serves adapters; where there is
            one policy and a server serves one model, that is it, whatever it is called.
        reward_models: names of the reward models, in the order of their rewards.
        context: tokens that prompt and response may have, until the servers have said so themselves.
        reference: name of the policy that is the reference itself, if one is.
        adapters: whether the policies are adapters; then a server must have each by name, or it would answer with
            their base.
        trials: what each server of a reward model must do before it is asked, by the model's name.
        every: seconds between two examinations of a server.

    Raises:
        InvalidValue: a role has no server, or a server is given for what there is not.
    """

    def __init__(
        self,
        settings: Settings,
        policies: Sequence[str],
        reward_models: Sequence[str],
        context: int,
        reference: str | None = None,
        adapters: bool = False,
        trials: Mapping[str, RewardTrial] | None = None,
        every: float = 5.0,
    ) -> None:
        if not settings.policy_urls:
            raise InvalidValue("--policy-urls", None, "addresses of the policies' servers, as for the other models")
        self._urls = _by_model(settings.reward_urls, reward_models)
        self._settings, self._policies, self._reference, self._every = settings, tuple(policies), reference, every
        self._alone = len(self._policies) == 1 and not adapters
        self._bundled, self._trials = context, trials or {}
        self._mismatches: dict[Server, RewardMismatch] = {}
        self._roles: _Roles | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watching: asyncio.Task[list[None]] | None = None

    @property
    def context(self) -> int:
        """The least that a server can do, by what it reported; before that, what the bundle says."""
        if not (roles := self._roles):
            return self._bundled
        drawing = [server.context for pool in (roles.policy, roles.reference) for server in pool.known]
        scoring = [_scored_context(server) for pool in roles.rewards for server in pool.known]
        return min([*drawing, *scoring], default=self._bundled)

    async def start(self) -> None:
        """Wait until each role has a server that does its work, however long it takes; may be cancelled.

        Every server is examined once before, so that the first is not given all the work.

        Raises:
            RewardMismatch: a reward model has no server but such as do not give the bundle's rewards.
        """
        self._loop = asyncio.get_running_loop()
        self._mismatches.clear()
        self._roles = roles = _Roles(
            Pool("policy", self._servers(self._settings.policy_urls), _try_policy, self._every),
            tuple(
                Pool(f"reward model {name}", self._servers(urls), self._reward_trial(name), self._every)
                for name, urls in self._urls.items()
            ),
            Pool("reference", self._servers(self._settings.reference_urls), _try_policy, self._every),
        )
        self._watching = watching = asyncio.create_task(together([pool.watch() for pool in roles.pools]))
        reminder = self._loop.time() + REMINDER_SECONDS
        try:
            while (lacks := self._lacks(roles)) or not roles.examined:
                if roles.examined:
                    self._refuse_other_rewards(roles)
                if lacks and self._loop.time() >= reminder:
                    log.warning("still waiting for %s", "; ".join(lacks))
                    reminder += REMINDER_SECONDS
                await asyncio.wait([watching], timeout=0.1)
                if watching.done():
                    watching.result()
        except BaseException:
            self.stop()
            raise

    async def generate(
        self, prompt: list[int], sampling: Sampling, listen: Callable[[Delta], None] | None = None
    ) -> Completion:
        told = asyncio.Event()
        growing = listen and _noting(told, listen)

        async def draw(server: Server, model: str) -> Completion:
            return await wire.complete(server.client, model, prompt, sampling, growing, server.watch.heard)

        pool, model_of = self._drawing(sampling.policy)
        # The seed makes another server draw the same, but what was told cannot be told again.
        return await pool.ask(draw, model_of, lambda: not told.is_set())

    async def check_structure(self, structure: Structure) -> None:
        """Nothing: each server checks what it is asked for."""

    async def score(self, tokens: Sequence[list[int]]) -> list[float]:
        async def by(pool: Pool, read: list[int]) -> float:
            return await pool.ask(lambda server, model: wire.score(server.client, model, read), _only)

        return await together([by(pool, read) for pool, read in zip(self._up().rewards, tokens, strict=True)])

    async def load(self, policy: str, adapter: Path) -> None:
        raise Refused("these engines are other servers; load it there, and start this server with a bundle that has it")

    async def unload(self, policy: str) -> None:
        """Nothing: what the servers hold is theirs to forget."""

    async def check(self) -> None:
        if lacks := self._lacks(self._up()):
            raise EnginesDown("; ".join(lacks))

    def stop(self) -> None:
        """Give up the connections; the servers go on."""
        self._roles = None
        if self._loop and self._watching and not self._loop.is_closed():
            # Not from the loop's own thread, perhaps.
            self._loop.call_soon_threadsafe(self._watching.cancel)

    def _reward_trial(self, name: str) -> Callable[[Server], Awaitable[None]]:
        """The trial of a server of the reward model ``name``."""
        trial = self._trials.get(name)

        async def run(server: Server) -> None:
            async def score(tokens: list[int]) -> float:
                return await wire.score(server.client, _only(server) or "", tokens)

            if trial is None:
                await score(TRIED)
                return
            self._mismatches.pop(server, None)
            try:
                places = fitting([trial], _scored_context(server))
                rewards = await together([score(trial.tokens[place]) for place in places])
                trial.judge(rewards, places, f"at {server.url}")
            except RewardMismatch as error:
                self._mismatches[server] = error
                raise

        return run

    def _refuse_other_rewards(self, roles: "_Roles") -> None:
        for pool in roles.rewards:
            mismatches = [self._mismatches[server] for server in pool.servers if server in self._mismatches]
            if mismatches and pool.lack(_only):
                raise mismatches[0]

    def _up(self) -> "_Roles":
        if self._roles is None:
            raise EnginesDown("the engines are not up")
        return self._roles

    def _servers(self, urls: Iterable[str]) -> list[Server]:
        # More than a server runs at a time, so that it always has one to go on with.
        connections = 2 * self._settings.max_sequences
        return [Server(url, self._settings.remote_timeout, connections) for url in urls]

    def _lacks(self, roles: "_Roles") -> list[str]:
        """What cannot be done, and why."""
        policies = [roles.policy.lack(self._policy_model(name)) for name in self._policies]
        rewards = [pool.lack(_only) for pool in roles.rewards]
        references = [roles.reference.lack(_only)] if roles.reference.servers else []
        return list(dict.fromkeys(lack for lack in (*policies, *rewards, *references) if lack))

    def _drawing(self, policy: str | None) -> tuple[Pool, Callable[[Server], str | None]]:
        """Who draws for a policy, or for the reference if None."""
        roles = self._up()
        if policy is not None:
            return roles.policy, self._policy_model(policy)
        if roles.reference.servers:
            return roles.reference, _only
        if self._reference is not None:
            return roles.policy, self._policy_model(self._reference)
        if not any(map(_base_of_adapters, roles.policy.servers)):
            raise EnginesDown(
                "no server has the reference: give --reference-urls, or let those of the policies serve adapters on it"
            )
        return roles.policy, _base_of_adapters

    def _policy_model(self, policy: str) -> Callable[[Server], str | None]:
        def model(server: Server) -> str | None:
            named = [card.id for card in server.cards]
            if policy in named:
                return policy
            return named[0] if len(named) == 1 and self._alone else None

        return model


def _by_model(given: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Addresses of each reward model, of those that ``--reward-urls`` gave."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for text in given:
        name, url = split_name(text)
        name = name or (names[0] if len(names) == 1 else "")
        if name not in found:
            raise InvalidValue("--reward-urls", text, f"NAME=URL with the name of a reward model: {', '.join(names)}")
        found[name].append(url)
    for name, urls in found.items():
        if not urls:
            raise InvalidValue("--reward-urls", ",".join(given) or None, f"a server for the reward model {name}")
    return found


def _noting(told: asyncio.Event, listen: Callable[[Delta], None]) -> Callable[[Delta], None]:
    def tell(delta: Delta) -> None:
        told.set()
        listen(delta)

    return tell


def _scored_context(server: Server) -> int:
    """Tokens of a text that a reward model's server gets to the end of.

    One that reads in several steps never comes to the last token of its context (vLLM's pull request 48039).
    """
    return server.context - 1


def _only(server: Server) -> str | None:
    """What the model of a server is called, adapters left aside."""
    return next((card.id for card in server.cards if card.parent is None), None)


def _base_of_adapters(server: Server) -> str | None:
    """What the model is called that a server's adapters sit on, if it has any."""
    return next((card.parent for card in server.cards if card.parent is not None), None)


async def _try_policy(server: Server) -> None:
    await wire.complete(server.client, _only(server) or "", TRIED, TRIAL, None, server.watch.heard)
