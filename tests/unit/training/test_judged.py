"""The largest N that a judge supports, in training: from stored rollouts, in the model card, and in the config."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infalign import CalibrationTable, Combination, InvalidValue, JudgeRecord
from infalign.templates import prompt_key, render_prompt
from tests.tiny import tiny_job
from training.card import replace_judge_section, write_judge_section
from training.config import Config
from training.configs import load_config
from training.evaluation import Side
from training.judged import RECORD, judge_rollouts, make_record, read_judge_record, write_judge_record
from training.pipeline import _check_splits
from training.stages import STAGES, Artifacts
from training.tokenizer import read_tokenizer

AGREES = np.random.default_rng(0).normal(size=(20, 16))
RECORD_OF = {True: make_record("judges/humans", Side(AGREES, AGREES)), False: make_record("h", Side(AGREES, -AGREES))}
"""By whether the judge agrees with the reward."""
SECTIONS = {
    "data": {"prompts": {"paths": ["prompts.jsonl"]}},
    "model": {"base": {"path": "m", "positions": 64}},
    "reward": {"classifiers": [{"path": "r", "higher_is": "better"}]},
    "rollouts": {"samples": 4, "max_tokens": 8},
    "seed": 0,
    "name": "run",
}
STAGE = next(stage for stage in STAGES if stage.name == "judge")


def test_stored_rollouts_of_validation_prompts_are_judged(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, 3, 8)
    prompts = [[{"role": "user", "content": text}] for text in ("why", "how", "a b")]
    rows = [
        {"prompt": prompt, "responses": ["a", "ab", "abc"], "tokens": [[1]] * 3, "rewards": [0.0, 2.0, float(place)]}
        for place, prompt in enumerate(prompts)
    ]
    (tmp_path / "00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = read_tokenizer(str(job.reference), "", "")
    keys = tuple(prompt_key(render_prompt(tokenizer, prompt)) for prompt in prompts)
    combination = Combination((CalibrationTable(keys, np.zeros((3, 3))),))

    def judge(conversations: Any, responses: Any) -> Any:
        assert len(conversations) == len(responses)
        return np.array([float(len(response)) for response in responses])

    side = judge_rollouts(tmp_path, job.reference, combination, [prompts[2], prompts[1]], judge)
    assert side.rewards.tolist() == [[0.0, 2.0, 1.0], [0.0, 2.0, 2.0]]
    assert side.judge_scores is not None
    assert side.judge_scores.tolist() == [[1.0, 2.0, 3.0]] * 2


def test_the_record_names_the_judge_and_what_it_supports() -> None:
    record = RECORD_OF[True]
    assert (record.judge, record.prompts, record.draws) == ("humans", 20, 16)
    assert {family: (support.n, support.falls) for family, support in record.support.items()} == {
        "best-of-n": (16, False),
        "worst-of-n": (16, False),
    }
    assert all(support.falls and support.peak == 1 for support in RECORD_OF[False].support.values())


def test_too_few_validation_prompts_leave_no_record_and_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": [{"role": "user", "content": str(place)}], "split": "validation"} for place in range(19)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    unused: Any = None
    write_judge_record(
        tmp_path,
        data=tmp_path,
        policy=None,
        reference=tmp_path,
        reward=tmp_path,
        calibration=tmp_path,
        rollouts=tmp_path,
        law=unused,
        judge="helpdesk",
        judge_output=None,
        draws=8,
        seed=0,
    )
    assert read_judge_record(tmp_path) is None
    (tmp_path / RECORD).write_text(RECORD_OF[True].model_dump_json())
    assert read_judge_record(tmp_path) == RECORD_OF[True]
    expected = "judge: 19 validation prompts, and 20 are needed: the bundle will not say how large N may be\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(("agrees", "text"), [(True, "at least N = 16. No fall"), (False, "It is highest at N = 1.")])
def test_the_card_says_how_large_n_may_be(agrees: bool, text: str) -> None:
    section = write_judge_section("demo", RECORD_OF[agrees])
    assert text in section
    assert f"| 1 | {RECORD_OF[agrees].support['best-of-n'].scores[1]} |" in section


def test_a_new_record_replaces_that_of_the_same_policy_in_the_card() -> None:
    card = "# Card\n\ntext\n" + write_judge_section("a", RECORD_OF[True]) + "\n## After\n\nmore\n"
    other = replace_judge_section(card, "b", RECORD_OF[True])
    assert other == card + write_judge_section("b", RECORD_OF[True])
    again = replace_judge_section(other, "a", RECORD_OF[False])
    assert again.count("## How large N may be: a\n") == 1
    assert again.count("## How large N may be: b\n") == 1
    assert "## After\n\nmore\n" in again
    assert again.endswith(write_judge_section("a", RECORD_OF[False]))
    assert replace_judge_section(again, "a", RECORD_OF[False]) == again


def config(**more: Any) -> Config:
    return Config.model_validate(SECTIONS | more)


def test_only_a_run_with_a_judge_has_the_stage() -> None:
    assert not STAGE.is_part_of(config())
    assert STAGE.is_part_of(config(judge={"path": "judges/humans"}))
    demo = load_config("demo")
    assert STAGE.is_part_of(demo)
    assert demo.validation_judge is not None
    assert demo.validation_judge.source == "helpdesk"


def test_without_a_policy_the_stage_reads_the_rollouts() -> None:
    artifacts = Artifacts(
        {name: Path(name) for name in ("data", "sft", "reward", "rollouts", "calibrate", "ctrl", "evaluate")}
    )
    inputs = STAGE.inputs(config(judge={"path": "judges/humans", "output": 1, "draws": 9}), artifacts)
    assert (inputs["policy"], inputs["rollouts"]) == (None, Path("rollouts"))
    assert (inputs["judge"], inputs["judge_output"], inputs["draws"]) == (Path("judges/humans"), 1, 9)
    of_policy = STAGE.inputs(load_config("demo"), artifacts)
    assert (of_policy["policy"], of_policy["rollouts"]) == (Path("ctrl/model"), None)


@pytest.mark.parametrize(
    ("validation", "judge", "refused"), [(19, {"path": "j"}, True), (20, {"path": "j"}, False), (2, None, False)]
)
def test_a_judge_that_is_named_needs_enough_validation_prompts(
    tmp_path: Path, validation: int, judge: dict[str, str] | None, refused: bool
) -> None:
    counts = {"train_prompts": 9, "validation_prompts": validation, "test_prompts": 9}
    (tmp_path / "report.json").write_text(json.dumps(counts))
    check: Callable[[], None] = lambda: _check_splits(config(judge=judge), tmp_path)  # noqa: E731
    if not refused:
        check()
        return
    with pytest.raises(InvalidValue, match="data: got 19, accepted: at least 20 validation prompts for judge"):
        check()


def test_a_record_survives_json() -> None:
    record = RECORD_OF[False]
    assert JudgeRecord.model_validate_json(record.model_dump_json()) == record
