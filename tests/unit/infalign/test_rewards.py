"""Rewards that are not classifiers: functions in their processes, services and judges over HTTP."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from infalign import BundleError, InvalidValue
from infalign.rewards import (
    FunctionReward,
    JudgeReward,
    OpenReward,
    ReferenceJudge,
    ReferenceJudgeReward,
    RewardFailed,
    ServiceReward,
    check_trust,
    open_reward,
    read_reward,
    save_reward,
)
from infalign.rewards.rubric import fill_rubric
from tests.scoring_service import serving

PROMPT = [{"role": "user", "content": "How long?"}]


@contextmanager
def opened(reward: Any) -> Iterator[OpenReward]:
    one = open_reward("it", reward)
    try:
        yield one
    finally:
        one.close()


def function(name: str, **fields: Any) -> FunctionReward:
    return FunctionReward(function=f"tests.reward_functions:{name}", **fields)


def score(reward: OpenReward, *responses: str) -> list[float]:
    return reward.score([PROMPT] * len(responses), responses)


# Functions.


def test_a_function_scores_in_a_process_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    with opened(function("length")) as reward:
        assert score(reward, "a", "abc") == [1.0, 3.0]
        (child,) = [
            child for child in psutil.Process().children() if "infalign.rewards.function_process" in child.cmdline()
        ]
    assert not child.is_running()
    out, err = capfd.readouterr()
    assert (out, "counting" in err) == ("", True)


def test_a_high_score_that_means_worse_is_turned() -> None:
    with opened(function("last_digit", higher_is="worse")) as reward:
        assert score(reward, "7", "a 2") == [-7.0, -2.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "the function of the reward it gave nan for response 2 of 2"),
        ("too_few", "gave 1 scores for 2 responses"),
        ("nothing", "failed: TypeError: 'NoneType' object is not iterable"),
        ("last_digit", "failed: ValueError: could not convert string to float: 'x'"),
    ],
)
def test_what_a_function_gives_that_is_no_score_is_none(name: str, message: str) -> None:
    with opened(function(name)) as reward, pytest.raises(RewardFailed, match=message) as caught:
        score(reward, "1", "x")
    assert caught.value.is_of_content


def test_a_function_that_hangs_is_killed_and_scores_again() -> None:
    with opened(function("hang", seconds=0.5)) as reward:
        with pytest.raises(RewardFailed, match=r"took more than 0\.5 s") as caught:
            score(reward, "hang")
        assert not caught.value.is_of_content
        reward._record = function("hang")  # type: ignore[attr-defined]  # a new process may take longer to start
        assert score(reward, "on") == [1.0]


def test_a_response_that_hangs_takes_no_other_of_its_batch_with_it() -> None:
    with opened(function("hang", seconds=8)) as reward:  # a quarter of it alone: enough for any but the one that hangs
        prompts, responses = [PROMPT] * 4, ["a", "hang", "b", "c"]
        first, hung, *others = reward.score_each(prompts, responses)
    assert [first, *others] == [1.0, 1.0, 1.0]
    assert isinstance(hung, RewardFailed)
    assert (str(hung), hung.is_of_content) == (
        "the function of the reward it took more than 2 s for 1 response",
        True,
    )


def test_trying_responses_alone_is_given_up_after_a_while() -> None:
    with opened(function("hang", seconds=0.4)) as reward:
        reward.patience = 0.05
        results = reward.score_each([PROMPT] * 3, ["hang", "a", "b"])
    assert [type(result) for result in results] == [RewardFailed] * 3
    assert "took more than 0.1 s for 1 response" in str(results[0])
    assert str(results[2]).endswith("no time was left to score others alone")
    assert not results[2].is_of_content  # type: ignore[union-attr]


class Down(OpenReward):
    """Blames a batch, and is down from its second single call on."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def score(self, prompts: Any, responses: Any) -> list[float]:
        self.calls.append(list(responses))
        if len(self.calls) != 2:
            raise RewardFailed("it failed", is_of_content=len(responses) > 1)
        return [1.0]

    def close(self) -> None:
        """Nothing to close."""


def test_a_reward_that_goes_down_is_not_asked_for_each_response() -> None:
    reward = Down()
    scored, *failed = reward.score_each([PROMPT] * 4, ["a", "b", "c", "d"])
    assert scored == 1.0
    assert [str(failure) for failure in failed] == ["it failed"] * 3
    assert reward.calls == [["a", "b", "c", "d"], ["a"], ["b"]]


def test_a_function_that_ends_its_process_fails_and_scores_again() -> None:
    with opened(function("leave")) as reward:
        with pytest.raises(RewardFailed, match="ended its process"):
            score(reward, "leave")
        assert score(reward, "stay") == [1.0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tests.no_such_module:score", "No module named 'tests.no_such_module'"),
        ("tests.reward_functions:missing", "has no attribute 'missing'"),
        ("tests.reward_functions:not_a_function", "is not a function"),
    ],
)
def test_a_function_that_cannot_be_imported_is_refused(path: str, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        open_reward("it", FunctionReward(function=path))


@pytest.mark.parametrize("path", ["module", "module:", "a b:c", "module:f()", ":f"])
def test_a_path_of_no_function_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="module:function"):
        FunctionReward(function=path)


# Services.


def lengths(body: dict[str, Any]) -> Any:
    """What each protocol answers if the score is the length of the response."""
    if "responses" in body:
        return {"rewards": [len(response) for response in body["responses"]]}
    if "query" in body:
        return {"rewards": [len(query.rpartition("assistant: ")[2]) for query in body["query"]]}
    if "text_1" in body:
        return {"data": [{"index": i, "score": len(text)} for i, text in enumerate(body["text_2"])]}
    outputs = [-1.0, len(body["messages"][-1]["content"])]
    return {"data": [{"data": outputs} if body.get("task") else {"label": "x", "probs": outputs}]}


@pytest.mark.parametrize("protocol", ["rewards", "openrlhf", "score", "classify", "pooling"])
def test_a_service_scores_by_its_protocol(protocol: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORER_KEY", "secret")
    with serving(lengths) as (url, bodies):
        output = int(protocol in ("classify", "pooling"))
        record = ServiceReward(url=f"{url}/at/", protocol=protocol, output=output, model="m", key="SCORER_KEY")
        with opened(record) as reward:
            assert score(reward, "a", "abc") == [1.0, 3.0]
    assert {(body["path"], body["key"]) for body in bodies} == {("/at", "Bearer secret")}
    if protocol == "rewards":
        assert bodies[0]["prompts"] == [PROMPT, PROMPT]
    elif protocol in ("classify", "pooling"):
        assert sorted(body["messages"][-1]["content"] for body in bodies) == ["a", "abc"]
        assert {(body["model"], body["add_generation_prompt"], body["use_activation"]) for body in bodies} == {
            ("m", False, False)
        }


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        ({"rewards": [1.0]}, 200, "gave 1 scores for 2 responses"),
        ({"rewards": [1.0, None]}, 200, "gave no list of numbers"),
        ({"rewards": [1.0, True]}, 200, "gave no list of numbers"),
        ({"rewards": "high"}, 200, "gave no list of numbers"),
        ([1.0, 2.0], 200, "gave no list of numbers"),
        (b'{"rewards": [1.0, NaN]}', 200, "gave nan for response 2 of 2"),
        (b"<html>", 200, "answered without JSON"),
        ({"error": "secret"}, 500, "answered HTTP 500"),
    ],
)
def test_a_service_that_answers_nonsense_gives_no_score(answer: Any, status: int, message: str) -> None:
    with serving(answer, status) as (url, _), opened(ServiceReward(url=url)) as reward:
        with pytest.raises(RewardFailed, match=message) as caught:
            score(reward, "a", "b")
        assert url not in str(caught.value)


def test_a_service_that_is_down_or_slow_gives_no_score() -> None:
    with serving(lengths, delay=1.0) as (url, _), opened(ServiceReward(url=url, seconds=0.2)) as reward:
        with pytest.raises(RewardFailed, match=r"no answer within 0\.2 s") as caught:
            score(reward, "a")
        assert not caught.value.is_of_content
    with opened(ServiceReward(url=url)) as reward, pytest.raises(RewardFailed, match="cannot be reached") as caught:
        score(reward, "a")
    assert not caught.value.is_of_content


def test_a_key_that_is_not_set_is_refused() -> None:
    with pytest.raises(InvalidValue, match="it is not set"):
        open_reward("it", ServiceReward(url="http://127.0.0.1:1", key="NO_SUCH_KEY"))


# Judges.


USAGE = {"total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 3}}


def chat_answer(**logprobs: float) -> dict[str, Any]:
    by_logprob = sorted(logprobs.items(), key=lambda entry: -entry[1])
    top = [{"token": token.replace("_", " "), "logprob": logprob} for token, logprob in by_logprob]
    return {"choices": [{"logprobs": {"content": [{**top[0], "top_logprobs": top}]}}], "usage": USAGE}


def test_a_judge_gives_its_expected_score_once_for_equal_texts() -> None:
    fields = {"rubric": "Is {response} an answer to {prompt}?", "scores": {"yes": 1.0, "no": 0.0}}
    answer = chat_answer(yes=-0.6931, _yes=-2.0794, no=-2.0794, perhaps=-1.5)
    with serving(answer) as (url, bodies), opened(JudgeReward(url=f"{url}/v1", model="j", **fields)) as reward:
        scores = score(reward, "It", "It", "That")
        assert score(reward, "It") == scores[:1]
        assert (reward.tokens, reward.cached_tokens) == (18, 6)
    assert scores == pytest.approx([0.625 / 0.75] * 3, abs=1e-4)
    assert [body["path"] for body in bodies] == ["/v1/chat/completions"] * 2
    assert {body["messages"][0]["content"] for body in bodies} == {
        f"Is {response} an answer to How long??" for response in ("It", "That")
    }
    assert {body["max_tokens"] for body in bodies} == {1}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (chat_answer(Well=-0.1), "writes none of its scores 1, 2, 3, 4, 5, but 'Well'"),
        ({"choices": [{"message": {"content": "5"}}]}, "without log-probabilities"),
        ({"choices": []}, "without log-probabilities"),
    ],
)
def test_a_judge_that_never_writes_a_score_gives_none(answer: Any, message: str) -> None:
    with (
        serving(answer) as (url, _),
        opened(JudgeReward(url=url, model="j")) as reward,
        pytest.raises(RewardFailed, match=message),
    ):
        score(reward, "It")


def test_a_first_turn_that_is_continued_answers_no_prompt() -> None:
    assert fill_rubric("{prompt}{response}?", [], "So") == "So?"


@pytest.mark.parametrize("rubric", ["Rate it", "{response} {response}", "{prompt} {response} {prompt}"])
def test_a_rubric_without_its_places_is_refused(rubric: str) -> None:
    with pytest.raises(ValueError, match=r"with \{response\} once"):
        JudgeReward(url="http://h", model="j", rubric=rubric)


@pytest.mark.parametrize(
    "scores", [{"1": 1.0}, {"1": 1.0, "2": 1.0}, {" ": 1.0, "2": 2.0}, {"1": float("inf"), "2": 1}]
)
def test_scores_that_say_nothing_are_refused(scores: Any) -> None:
    with pytest.raises(ValueError, match="at least two texts"):
        JudgeReward(url="http://h", model="j", scores=scores)


# The reference as a judge.


def test_the_reference_gives_its_expected_score() -> None:
    judge = ReferenceJudge(None, (7, 8), (-1.0, -5.0))
    assert judge.score([-0.5, -0.5]) == pytest.approx(-3.0)
    assert judge.score([-math.inf, -9.0]) == -5.0


@pytest.mark.parametrize(("logprob", "message"), [(-math.inf, "none of its scores"), (math.nan, "not a number")])
def test_the_reference_that_gives_no_score_a_probability_gives_none(logprob: float, message: str) -> None:
    with pytest.raises(RewardFailed, match=message):
        ReferenceJudge(None, (7, 8), (1.0, 5.0)).score([logprob, logprob])


def test_the_reference_has_at_most_as_many_scores_as_vllm_gives() -> None:
    with pytest.raises(ValueError, match="at most 128 items"):
        ReferenceJudgeReward(scores={str(score): score for score in range(129)})


# Records in bundles.


def test_a_reward_is_saved_read_and_trusted(tmp_path: Path) -> None:
    reward = JudgeReward(url="http://host:1/v1", model="j")
    save_reward(reward, tmp_path / "reward")
    assert read_reward(tmp_path / "reward") == reward
    assert check_trust({"judge": tmp_path / "reward", "model": tmp_path}, trust=True) == {"judge": reward}
    with pytest.raises(InvalidValue, match=r"--trust-rewards, to run .*: judge \(judge j at http://host:1/v1\)"):
        check_trust({"judge": tmp_path / "reward"}, trust=False)
    assert check_trust({"model": tmp_path}, trust=False) == {}
    (tmp_path / "reward" / "reward.json").write_text('{"kind": "oracle"}')
    with pytest.raises(BundleError, match=r"reward\.json"):
        read_reward(tmp_path / "reward")
