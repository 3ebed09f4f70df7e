import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import GPT2Config

from infalign import BestOfN, Estimate, InvalidValue, Standard, WorstOfN, parse_mixture
from training.evaluation import Draws, Evaluation, Side, compute_evaluation, report
from training.evaluation.command import read_evaluation_prompts
from training.evaluation.figures import procedures_of

M = 3
KL = math.log(M) - (M - 1) / M
"""Of the policy whose quantiles have density M u^(M-1): the optimum of the transformation `log`."""


def distilled(judged: bool = True, prompts: int = 400, draws: int = 32) -> Draws:
    """Draws of that policy; the judge agrees with the reward."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.uniform(size=(prompts, draws)) ** (1 / M), rng.uniform(size=(prompts, draws))
    return Draws(
        Side(ours, np.round(ours, 1) if judged else None),
        Side(theirs, np.round(theirs, 1) if judged else None),
        np.full(prompts, KL),
    )


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return compute_evaluation(distilled(), procedures_of(BestOfN(4)), "log", BestOfN(4), 256)


@pytest.mark.parametrize("procedure", ["standard", "best-of-4", "worst-of-2"])
def test_a_policy_on_the_frontier_is_measured_there(found: Evaluation, procedure: str) -> None:
    row = found.under(procedure)
    assert row.win_rate.low < row.theory + 0.004
    assert row.win_rate.high > row.theory - 0.004
    assert row.win_rate.high - row.win_rate.low < 0.04


def test_a_judge_that_agrees_with_the_reward_prefers_the_policy_as_often(found: Evaluation) -> None:
    row = found.under("standard")
    assert row.judged_win_rate is not None
    assert row.judged_win_rate.value == pytest.approx(row.win_rate.value, abs=0.01)
    assert found.overselection is not None
    assert found.overselection.harmful is None
    assert found.overselection.ns == (1, 2, 4, 8, 16, 32)


def test_selecting_harder_is_found_out_where_the_judge_disagrees() -> None:
    """The judge likes rewards up to 0.9 and nothing beyond."""
    draws = distilled()
    hacked = Side(draws.policy.rewards, np.where(draws.policy.rewards > 0.9, 0.0, draws.policy.rewards))
    found = compute_evaluation(Draws(hacked, draws.reference, draws.kl), [Standard()], "log", BestOfN(4), 64)
    assert found.overselection is not None
    assert found.overselection.harmful is not None
    assert "being gamed" in report.as_text(found)


def test_without_a_judge_nothing_is_said_of_one() -> None:
    found = compute_evaluation(distilled(judged=False), [Standard(), WorstOfN(2)], "log", BestOfN(4), 64)
    assert found.overselection is None
    assert "judge" not in report.as_text(found)
    assert json.loads(report.as_json(found))["decoded"][0]["judged_win_rate"] is None
    assert set(report.select_figures(found)) == {"kl", "kl_low", "kl_high", "win_rate_standard"}


def test_one_prompt_has_no_interval_and_still_is_json() -> None:
    found = compute_evaluation(distilled(prompts=1), [Standard()], "log", BestOfN(4), 64)
    assert json.loads(report.as_json(found))["kl"]["low"] is None
    assert "kl_low" not in report.select_figures(found)


def test_the_same_policy_on_both_sides_is_at_zero_and_wins_half() -> None:
    side = distilled(judged=False).reference
    found = compute_evaluation(Draws(side, side, np.zeros(400)), [Standard()], "exp(10)", BestOfN(4), 64)
    assert (found.kl.value, found.under("standard").theory) == (0, 0.5)
    assert found.under("standard").win_rate.value == pytest.approx(0.5)
    assert report.draw_picture(found, 64, ["standard"]).axes[0].lines


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(InvalidValue, match="draws: got 2, accepted: enough for best-of-4"):
        compute_evaluation(distilled(draws=2), [BestOfN(4)], "log", BestOfN(4), 64)


def test_what_the_policy_was_trained_for_is_measured_once() -> None:
    names = [str(procedure) for procedure in procedures_of(BestOfN(4), (2, 4))]
    assert names == ["standard", "best-of-2", "best-of-4", "worst-of-2", "worst-of-4"]
    assert str(procedures_of(WorstOfN(16), (2,))[-1]) == "worst-of-16"


def test_a_policy_for_a_mixture_is_measured_under_each_procedure_and_the_mixture(tmp_path: Path) -> None:
    mixture = parse_mixture("worst-of-4+2*best-of-16")
    found = compute_evaluation(distilled(), procedures_of(mixture, (2,)), "optimal", mixture, 64)
    rows = [row.procedure for row in found.decoded]
    assert rows == ["standard", "best-of-2", "worst-of-2", "worst-of-4", "best-of-16", str(mixture)]
    best, worst, both = (found.under(name) for name in ("best-of-16", "worst-of-4", str(mixture)))
    for figure in ("win_rate", "judged_win_rate", "judge_policy", "judge_reference"):
        parts = [getattr(row, figure).value for row in (best, worst, both)]
        assert parts[2] == pytest.approx((2 * parts[0] + parts[1]) / 3)
    assert both.theory == pytest.approx((2 * best.theory + worst.theory) / 3)
    assert both.theory > both.win_rate.value  # `log` is not its optimum
    figures = report.select_figures(found)
    assert {f"win_rate_{name}" for name in ("standard", "best-of-16", "worst-of-4", str(mixture))} <= set(figures)
    report.write_report(tmp_path, found, [], 64)
    assert "| worst-of-4+2*best-of-16 |" in (tmp_path / report.TEXT).read_text()


def test_all_of_it_is_written(found: Evaluation, tmp_path: Path) -> None:
    report.write_report(tmp_path, found, [[{"role": "user", "content": "Wie?"}]], 64)
    assert json.loads((tmp_path / report.PROMPTS).read_text())["prompt"][0]["content"] == "Wie?"
    assert json.loads((tmp_path / report.FIGURES).read_text())["decoded"][2]["procedure"] == "best-of-4"
    assert "| best-of-4 | 0.7" in (tmp_path / report.TEXT).read_text()
    assert (tmp_path / report.PICTURE).read_text().startswith("<?xml")
    assert Estimate(**json.loads((tmp_path / report.FIGURES).read_text())["kl"]).value == pytest.approx(KL)


class Characters:
    """One token per character."""

    chat_template, all_special_tokens, added_tokens_decoder = None, (), {}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
        return "".join(message["content"] for message in messages)

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": list(map(ord, text))}


POLICY = SimpleNamespace(
    tokenizer=Characters(),
    model=SimpleNamespace(config=GPT2Config(n_positions=20)),
    law=SimpleNamespace(max_tokens=8),
)


def test_prompts_are_read_as_text_or_messages_and_once(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "one"}, {"prompt": [{"role": "user", "content": "two"}], "split": "test"}, "three", "one"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    contents = [prompt[0]["content"] for prompt in read_evaluation_prompts(path, POLICY, None)]
    assert contents == ["one", "two", "three"]
    assert len(read_evaluation_prompts(path, POLICY, 2)) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a question too long"}', "row 1: got '19 tokens', accepted: 12 at most"),
        ('{"question": "what"}', r"row 1: got 'no prompt', accepted: {\"prompt\": text or messages}"),
        ('{"prompt": []}', "row 1: got 'a prompt that is neither text nor messages'"),
        ('{"prompt": [{"role": "user"}]}', "row 1: got 'a message without role and content'"),
        ("not JSON", "this is text, and none of its 1 lines can be parsed as JSON"),
        ("", "prompts: .*at least one"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused_by_row(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InvalidValue, match=message):
        read_evaluation_prompts(path, POLICY, None)
