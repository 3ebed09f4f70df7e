"""Which engines a bundle gets whose reference is a judge, or that has a prefix scorer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infalign import InvalidValue
from infalign.rewards import ReferenceJudgeReward, save_reward
from server import assembly
from server.settings import Settings
from tests.fakes import SCORER, CharacterTokenizer, fake_served


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bundle whose reference is its only reward, and whose policy is a whole model."""
    for name in ("policy", "reference"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"max_position_embeddings": 64}')
    save_reward(ReferenceJudgeReward(rubric="{response}?", scores={"1": 1.0, "2": 2.0}), tmp_path / "reward")
    monkeypatch.setattr(assembly, "load_tokenizer", lambda _: CharacterTokenizer())
    return replace(fake_served().bundle, path=tmp_path)


def test_the_reference_judges_without_trust_and_without_an_engine_of_its_own(bundle: Any) -> None:
    engines, served = assembly.assemble(bundle, Settings())
    assert (list(served.judges), list(served.tokenizers[1]), dict(served.rewards)) == (["reward"], ["reward"], {})
    assert served.judges["reward"].tokens == (ord("1"), ord("2"))
    inner: Any = engines
    assert inner._engines._reference_judges
    assert inner._engines._plan.rewards == ()


def test_servers_elsewhere_must_have_the_reference(bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = {"policy_urls": ("http://policy",)}
    with pytest.raises(InvalidValue, match=r"--reference-urls: got None, .*the reference, which is a judge"):
        assembly.assemble(bundle, Settings(**urls))
    assembly.assemble(bundle, Settings(**urls, reference_urls=("http://reference",)))
    remote: Any
    remote, _ = assembly.assemble(bundle, Settings(**urls), reference=True)
    assert remote._reference == "fake-reference"
    monkeypatch.setattr(type(bundle.policy()), "is_reference", True)
    remote, _ = assembly.assemble(bundle, Settings(**urls))
    assert remote._reference == "fake", "the policy is its own reference"


def test_servers_elsewhere_run_the_prefix_scorer_only_if_they_are_named(bundle: Any) -> None:
    urls: dict[str, Any] = {"policy_urls": ("http://policy",), "reference_urls": ("http://reference",)}
    with pytest.raises(InvalidValue, match="--scorer-urls: got 'http://s', accepted: none: the bundle has no prefix"):
        assembly.assemble(bundle, Settings(**urls, scorer_urls=("http://s",)))
    bundle = replace(bundle, scorer=SCORER)
    (bundle.path / "scorer").mkdir()
    (bundle.path / "scorer" / "config.json").write_text('{"max_position_embeddings": 64}')
    remote: Any
    remote, served = assembly.assemble(bundle, Settings(**urls, scorer_urls=("http://s",)))
    assert (served.scorer, remote._scorer_outputs) == (SCORER, 20)
    _, served = assembly.assemble(bundle, Settings(**urls))
    assert served.scorer is None
    local: Any
    local, served = assembly.assemble(bundle, Settings())
    assert (served.scorer, local._engines._plan.scorer) == (SCORER, bundle.path / "scorer")
