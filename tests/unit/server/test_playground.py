"""The playground: its page and files, and what ``/v1/session`` tells whom."""

import os
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from infalign.manifest import Alignment
from infalign.reproduction import RewardExample
from server.app import ServedBundle, create_app
from server.routes.cards import describe_policy, draw_curve
from server.routes.pages import FOLDER, PlaygroundFiles
from server.routes.story import read_prompts, tell_story
from server.settings import Settings
from tests.fakes import KNOWN, SCORER, WEAK, CharacterTokenizer, FakeEngines, fake_served
from tests.keys import bearer, keys_file
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
FILES = sorted(path.name for path in FOLDER.iterdir())
PAGE = (FOLDER / "index.html").read_text(encoding="utf-8")
MOST_BYTES = 200_000
NAMESPACE = "http://www.w3.org/2000/svg"
"""The only address in the files. It is a name, which nothing loads."""
EXAMPLES = [("answer 2", 2.0), ("a long answer, 8", 8.0), ("answer 9", 9.0)]


def with_examples(served: ServedBundle, *prompts: str) -> ServedBundle:
    """The same, with three scored answers to each prompt."""
    examples = tuple(
        RewardExample(prompt=({"role": "user", "content": prompt},), response=text, rewards={"reward": reward})
        for prompt in prompts
        for text, reward in EXAMPLES
    )
    object.__setattr__(served.bundle, "examples", examples)
    return served


# -- the page and its files


@pytest.mark.parametrize("path", ["/", *(f"/playground/{name}" for name in FILES)])
async def test_files_are_served_and_kept_by_their_etag(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = await client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = await client.head(path)
    assert head.status_code == 200
    assert {name: head.headers[name] for name in ("etag", "content-length", "content-type")} == {
        name: answer.headers[name] for name in ("etag", "content-length", "content-type")
    }


async def test_an_etag_follows_the_content_and_not_the_time(tmp_path: Path) -> None:
    app = Starlette(routes=[Mount("/", PlaygroundFiles(directory=tmp_path))])
    tags = []
    async with client_of(app) as client:
        for text in ("first", "other"):
            (tmp_path / "x.js").write_text(text)
            os.utime(tmp_path / "x.js", (1_600_000_000, 1_600_000_000))
            answer = await client.get("/x.js", headers={"If-None-Match": tags[-1]} if tags else {})
            assert (answer.status_code, answer.text) == (200, text)
            assert "last-modified" not in answer.headers
            tags.append(answer.headers["etag"])
    assert len(set(tags)) == 2


async def test_the_page_runs_only_files_of_this_server(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers.get_list("content-security-policy") == [POLICY]
    confirmed = await client.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert confirmed.headers.get_list("content-security-policy") == [POLICY]  # a browser takes that for the page's
    for path in ("/docs", "/redoc"):
        assert "'unsafe-inline'" in (await client.get(path)).headers["content-security-policy"]


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", PAGE)
    for name in re.findall(r'(?:src|href)="([^"#]+)"', PAGE):
        assert not name.startswith(("/", "http")), name
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        assert "//" not in re.sub(r"^\s*//.*|\s//\s.*", "", text.replace(NAMESPACE, ""), flags=re.MULTILINE), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|@import", text), (
            path.name
        )


def test_the_first_view_is_small_and_all_of_it_is_there() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MOST_BYTES
    used = set(re.findall(r"playground/([\w.]+)", PAGE)) | {"index.html"}
    for path in FOLDER.glob("*.js"):
        used |= set(re.findall(r'from "\./([\w.]+)"', path.read_text(encoding="utf-8")))
    assert used == set(FILES)


@pytest.mark.parametrize(
    "path", ["/playground", "/playground/", "/playground/nothing.js", "/playground/..%2fpages.py", "/playground/a%00"]
)
async def test_nothing_else_is_served(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


async def test_the_page_is_open_and_only_to_its_own_machine_without_keys(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    assert (await client.get("/", headers={"Host": "evil.example"})).status_code == 421
    app = create_app(Settings(keys=keys_file(tmp_path)), FakeEngines(), fake_served())
    async with client_of(app) as guarded:
        for path in ("/", "/playground/main.js"):
            assert (await guarded.get(path, headers={"Host": "models.example"})).status_code == 200
        assert (await guarded.get("/v1/session")).status_code == 401
        assert (await guarded.post("/")).status_code == 405


# -- the session


async def test_without_keys_everyone_may_see_everything(engines: FakeEngines) -> None:
    app = create_app(Settings(max_n=16), engines, with_examples(fake_served(scorer=SCORER), KNOWN))
    async with client_of(app) as client:  # before the engines are up
        answer = await client.get("/v1/session")
    assert answer.headers["cache-control"] == "no-store"
    session = answer.json()
    assert (session["caller"], session["roles"]) == ("anonymous", ["admin", "generate", "probe"])
    assert session["max_n"] == 16
    (model,) = session["models"]
    assert (model["id"], model["procedure"]) == ("fake", "best-of-4")
    assert model["max_n"] == {"best-of-n": 16, "worst-of-n": 16}
    assert model["card"]["transformation"] == "exp(10)"
    assert [curve["procedure"] for curve in model["card"]["frontier"]] == ["standard", "best-of-4"]
    assert session["bundle"]["samples"] == 10
    assert session["bundle"]["has_scorer"] is True
    assert session["prompts"] == [KNOWN]
    story = session["story"]
    assert story["rewards"] == list(range(10))
    assert (story["prompt"], story["response"]) == (KNOWN, "answer 9")
    assert story["rank"] == 9.5
    assert story["quantile"] == pytest.approx(10 / 11)
    assert story["quantile_low"] < story["quantile"] < story["quantile_high"]


SEEN = [
    ("app", ["generate"], True, False),
    ("safety", ["generate", "probe"], True, False),
    ("prober", ["probe"], False, False),
    ("root", ["admin"], True, True),
]


@pytest.mark.parametrize(("name", "roles", "sees_figures", "sees_texts"), SEEN, ids=[row[0] for row in SEEN])
async def test_a_session_tells_no_more_than_the_role_may_see(
    tmp_path: Path, name: str, roles: list[str], sees_figures: bool, sees_texts: bool
) -> None:
    served = with_examples(fake_served(), KNOWN)
    app = create_app(Settings(keys=keys_file(tmp_path)), FakeEngines(), served)
    async with client_of(app) as client:
        answer = await client.get("/v1/session", headers=bearer(name))
        head = await client.head("/v1/session", headers=bearer(name))
    session = answer.json()
    assert head.status_code == 200
    assert (session["caller"], session["roles"]) == (name, roles)
    assert ("bundle" in session, "story" in session, "card" in session["models"][0]) == (sees_figures,) * 3
    assert ("prompts" in session, KNOWN in answer.text, "answer 9" in answer.text) == (sees_texts,) * 3


async def test_a_policy_without_a_record_has_no_card(engines: FakeEngines) -> None:
    served = fake_served()
    other = ServedBundle(served.bundle, served.tokenizers, {"other": "best-of-4+worst-of-4"})
    async with client_of(create_app(Settings(), engines, other)) as client:
        (model,) = (await client.get("/v1/session")).json()["models"]
    assert model["procedure"] == "best-of-4+worst-of-4"
    assert "card" not in model


async def test_several_reward_models_have_their_shares(engines: FakeEngines) -> None:
    served = with_examples(fake_served(weights={"a": 1.0, "b": 3.0}), KNOWN)
    names = {name: {"digest": "d", "weight": weight} for name, weight in (("a", 1.0), ("b", 3.0))}
    object.__setattr__(
        served.bundle,
        "calibration",
        type(served.bundle.calibration)(**served.bundle.calibration.model_dump() | {"reward_models": names}),
    )
    async with client_of(create_app(Settings(), engines, served)) as client:
        session = (await client.get("/v1/session")).json()
    assert session["bundle"]["reward_models"] == [{"name": "a", "share": 0.25}, {"name": "b", "share": 0.75}]
    assert "prompt" not in session["story"]  # its reward is the combined one


# -- the card and the story


def policy_of(tmp_path: Path, alignment: Alignment, figures: str | None = None) -> Any:
    policy = fake_served(alignment=alignment).bundle.policy()
    object.__setattr__(policy, "bundle", tmp_path)
    policy.evaluation.mkdir(parents=True)
    if figures is not None:
        (policy.evaluation / "figures.json").write_text(figures)
    return policy


FIGURES = """{"prompts": 9, "kl": {"value": 0.5, "low": 0.4, "high": 0.6, "level": 0.95}, "decoded": [
    {"procedure": "best-of-4", "theory": 0.9, "win_rate": {"value": 0.8, "low": 0.7, "high": 0.9, "level": 0.95}}]}"""


def test_a_card_has_the_figures_with_their_intervals(tmp_path: Path) -> None:
    card = describe_policy(policy_of(tmp_path, WEAK, FIGURES))
    assert card.kl is not None
    assert (card.kl.low, card.kl.value, card.kl.high) == (0.4, 0.5, 0.6)
    (decoded,) = card.decoded
    assert (decoded.procedure, decoded.win_rate.low, decoded.judged_win_rate) == ("best-of-4", 0.7, None)


@pytest.mark.parametrize("figures", [None, "not json", "{}", '{"decoded": 5}', '{"decoded": [{"procedure": 1}]}'])
def test_without_that_file_a_card_has_the_figures_of_the_manifest(tmp_path: Path, figures: str | None) -> None:
    measured = {"kl": 0.2, "kl_low": 0.1, "kl_high": 0.3, "win_rate_standard": 0.6, "judged_win_rate_standard": 0.5}
    card = describe_policy(policy_of(tmp_path, WEAK.model_copy(update={"measured": measured}), figures))
    assert card.kl is not None
    assert (card.kl.low, card.kl.value, card.kl.high) == (0.1, 0.2, 0.3)
    (decoded,) = card.decoded
    assert (decoded.procedure, decoded.win_rate.value, decoded.win_rate.low) == ("standard", 0.6, None)
    assert decoded.judged_win_rate is not None


def test_a_policy_that_is_the_reference_has_no_frontier(tmp_path: Path) -> None:
    card = describe_policy(policy_of(tmp_path, Alignment(measured={})))
    assert (card.transformation, card.kl, card.decoded, card.frontier) == (None, None, [], [])


def test_a_curve_rises_from_one_half_and_ends_where_the_transformation_does() -> None:
    curve = draw_curve("optimal", "best-of-4", "best-of-4", 1)
    assert curve is not None
    assert (curve.kl[0], curve.win_rate[0], curve.kl[-1]) == (0, 0.5, 1)
    assert np.all(np.diff(curve.win_rate) > 0)
    assert curve.win_rate[np.searchsorted(curve.kl, 0.5)] == pytest.approx(0.86, abs=0.02)
    assert draw_curve("nonsense", "standard", "standard", 1) is None


def test_a_story_shows_no_answer_of_the_lower_half() -> None:
    bundle = with_examples(fake_served(), KNOWN, "never calibrated").bundle
    assert tell_story(bundle, CharacterTokenizer()).response == "answer 9"
    assert read_prompts(bundle) == [KNOWN, "never calibrated"]
    object.__setattr__(bundle, "examples", bundle.examples[:1])
    story = tell_story(bundle, CharacterTokenizer())
    assert (story.prompt, story.response, story.reward) == (None, None, 7)
    assert story.without_text == story
