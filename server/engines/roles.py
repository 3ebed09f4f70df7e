"""The roles of vLLM servers: which servers do the work of which model, and by which name they know it."""

from collections.abc import Sequence
from dataclasses import dataclass

from infalign.errors import InvalidValue
from server.engines.pool import Pool, Server
from server.settings import split_name


@dataclass(frozen=True)
class Roles:
    """The pools of servers by role. ``reference`` and ``scorer`` are empty if no servers are given for them."""

    policy: Pool
    rewards: tuple[Pool, ...]
    reference: Pool
    scorer: Pool

    @property
    def classifiers(self) -> tuple[Pool, ...]:
        """The pools that score."""
        return *self.rewards, self.scorer

    @property
    def pools(self) -> tuple[Pool, ...]:
        """All pools."""
        return self.policy, self.reference, *self.classifiers

    @property
    def is_examined(self) -> bool:
        """Whether every server has been examined at least once."""
        return all(server.examination_end.is_set() for pool in self.pools for server in pool.servers)


def group_urls(texts: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Group the addresses of ``--reward-urls`` by reward model.

    Args:
        texts: Addresses, or NAME=URL.
        names: Names of the reward models.

    Raises:
        InvalidValue: A name is missing or unknown, or a reward model has no server.
    """
    urls_by_model: dict[str, list[str]] = {name: [] for name in names}
    for text in texts:
        name, url = split_name(text)
        name = name or (names[0] if len(names) == 1 else "")
        if name not in urls_by_model:
            raise InvalidValue("--reward-urls", text, f"NAME=URL with the name of a reward model: {', '.join(names)}")
        urls_by_model[name].append(url)
    for name, urls in urls_by_model.items():
        if not urls:
            raise InvalidValue("--reward-urls", ",".join(texts) or None, f"a server for the reward model {name}")
    return urls_by_model


def classifier_context(server: Server) -> int:
    """The longest text, in tokens, that the server of a reward model or of the prefix scorer reads to its end.

    A server that reads in several steps never reaches the last token of its context (vLLM's pull request 48039).
    """
    return server.context - 1


def base_model(server: Server) -> str | None:
    """The name of a server's model that is not an adapter."""
    return next((card.id for card in server.cards if card.parent is None), None)


def adapter_base(server: Server) -> str | None:
    """The name of the model that a server's adapters belong to, if it has any."""
    return next((card.parent for card in server.cards if card.parent is not None), None)
