"""Training fits the machine: as much is done at a time as there is memory for, or one line says why nothing is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from infalign.cli import infalign
from infalign.errors import InvalidValue, TooLittleMemory
from infalign.machine import cgroup_memory
from infalign.mixture import Mixture
from infalign.procedures import Standard
from infalign.storage import load_calibration
from infalign.transforms import Identity
from tests.tiny import tiny_job
from training import memory, pipeline, planning
from training.calibrate import write_calibration
from training.config import Compute, Ctrl, Lora, Optimiser, Scratch
from training.configs import load_config
from training.data import read_lengths, write_data
from training.memory import Pass, batches, compare_bytes, draw_bytes, fit_sequences, forward_bytes
from training.models import new_model
from training.rollouts import write_rollouts
from training.scorer import CombinedScorer
from training.sft import make_reference
from training.shapes import Shape, read_shape, scratch_shape, shape_of
from training.solvers import regression
from training.solvers.task import Task
from training.tokenizer import train_tokenizer

GB = 10**9
SMOLLM = Shape(layers=30, hidden=576, intermediate=1536, queries=576, keys=192, vocabulary=49152)
DEMO = scratch_shape(Scratch(vocabulary=2048, hidden=128, layers=2, positions=2048))
LORA = Lora(rank=16, alpha=32)
TINY = (
    "data.helpdesk.answers=1",
    "data.helpdesk.pairs=1",
    "data.helpdesk.held_out=36",
    "model.scratch.hidden=32",
    "model.scratch.layers=1",
    "rollouts.samples=4",
    "rollouts.max_tokens=16",
)


def comparisons(compute: Compute | None = None, lora: Lora | None = LORA, shape: Shape = SMOLLM) -> Pass:
    """A pass of a reward model over comparisons of up to 512 tokens."""
    return Pass(shape, compute or Compute(), 512, lora, sequences=2, logits=False)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how much memory there is."""

    def available(size: float) -> None:
        for module in (memory, planning):
            monkeypatch.setattr(module, "available_memory", lambda: int(size))

    return available


@pytest.mark.parametrize(
    ("available", "compute", "lora", "chosen"),
    [
        pytest.param(24 * GB, {}, LORA, 8, id="a 135M base on the machine that killed it"),
        pytest.param(64 * GB, {}, LORA, 16, id="more memory: the whole batch"),
        pytest.param(8 * GB, {}, LORA, 2, id="a laptop"),
        pytest.param(5 * GB, {}, LORA, 1, id="a small laptop"),
        pytest.param(8 * GB, {"gradient_checkpointing": True}, LORA, 16, id="checkpointing"),
        pytest.param(8 * GB, {}, None, 1, id="all weights"),
        pytest.param(1 * GB, {"sequences": 4}, LORA, 4, id="as the config says"),
    ],
)
def test_as_much_of_a_batch_as_fits_is_done_at_a_time(
    machine: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    available: int,
    compute: Any,
    lora: Lora | None,
    chosen: int,
) -> None:
    machine(available)
    assert fit_sequences(tmp_path, "reward", 16, comparisons(Compute(**compute), lora)) == chosen
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"reward: {chosen} of 16 at a time, of up to 512 tokens; estimated memory ")


def test_what_does_not_fit_is_refused_in_one_line_that_says_what_helps(machine: Any, tmp_path: Path) -> None:
    machine(2 * GB)
    with pytest.raises(TooLittleMemory) as refused:
        fit_sequences(tmp_path, "reward", 16, comparisons(lora=None))
    assert str(refused.value) == (
        "reward: one of a batch of 16, of up to 512 tokens, takes an estimated 4.5 GB, more than 80% of the available "
        "memory of 2.0 GB; what helps: fewer positions of the model, reward.train.lora, "
        "compute.gradient_checkpointing=true, compute.precision=bfloat16; compute.sequences=1 tries it regardless"
    )


def test_sequences_that_do_not_divide_the_batch_are_refused(machine: Any, tmp_path: Path) -> None:
    machine(GB)
    with pytest.raises(InvalidValue, match=r"compute.sequences: got 3, accepted: a divisor of the batch of 16"):
        fit_sequences(tmp_path, "reward", 16, comparisons(Compute(sequences=3)))


@pytest.mark.parametrize(
    ("items", "length", "compute", "measured"),
    [
        pytest.param(2, 256, Compute(), 2.17 * GB, id="a pass of 4 sequences"),
        pytest.param(2, 256, Compute(gradient_checkpointing=True), 0.8 * GB, id="the same with checkpointing"),
        pytest.param(8, 479, Compute(), 11.5 * GB, id="a whole stage, 16 sequences a pass"),
    ],
)
def test_the_estimate_is_above_what_a_135m_model_took_but_not_far(
    items: int, length: int, compute: Compute, measured: float
) -> None:
    """Peak resident memory on a CPU, without the libraries' own; adapters of rank 16."""
    estimate = replace(comparisons(compute), length=length).bytes(items)
    assert measured < estimate < 1.4 * measured


def test_the_estimate_follows_what_makes_a_pass_smaller() -> None:
    whole = comparisons(lora=None)
    assert whole.bytes(1) < whole.bytes(2) < whole.bytes(4)
    assert replace(whole, lora=LORA).bytes(1) < whole.bytes(1)
    assert replace(whole, compute=Compute(gradient_checkpointing=True)).bytes(4) < whole.bytes(4)
    assert replace(whole, compute=Compute(precision="bfloat16")).bytes(4) < whole.bytes(4)
    assert replace(whole, logits=True).bytes(4) > whole.bytes(4)


def test_a_run_that_cannot_fit_is_refused_before_anything_is_trained(tmp_path: Path, machine: Any) -> None:
    machine(2_000_000)
    with pytest.raises(TooLittleMemory, match="sft: one of a batch of 32, of up to 52 tokens"):
        pipeline.train(load_config("demo", TINY), tmp_path, tmp_path / "bundle")
    assert [path.name.split("-")[0] for path in (tmp_path / "demo").glob("[a-z]*-*")] == ["data"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage ``data`` leaves of the tiny demo."""
    directory = tmp_path_factory.mktemp("data")
    write_data(directory, config=load_config("demo", TINY).for_data, seed=0)
    return directory


def test_what_is_reached_does_not_depend_on_the_memory(tmp_path: Path, written: Path, machine: Any) -> None:
    def trained(available: float) -> tuple[int, dict[str, Any]]:
        machine(available)
        directory = tmp_path / f"{available:g}"
        directory.mkdir()
        origin = Scratch(vocabulary=2048, hidden=32, layers=1, positions=64)
        learning = Optimiser(learning_rate=1e-3, batch=16)
        make_reference(directory, data=written, origin=origin, config=learning, compute=Compute(), seed=0)
        chosen = json.loads((directory / "memory.json").read_text())
        assert chosen["longest"] == read_lengths(written)["answer"].longest
        return chosen["sequences"], load_file(directory / "model" / "model.safetensors")

    (many, ours), (few, theirs) = trained(8 * GB), trained(35e6)
    assert (many, few) == (16, 4)
    for name, weights in ours.items():
        np.testing.assert_allclose(weights, theirs[name], atol=2e-4)


def test_the_regression_learns_the_same_however_it_computes(tmp_path: Path, machine: Any) -> None:
    job = tiny_job(tmp_path, samples=4, max_tokens=6)
    prompts = [[{"role": "user", "content": f"{word}?"}] for word in "abcd"]
    drawn, calibrated = tmp_path / "drawn", tmp_path / "calibrated"
    for directory in (drawn, calibrated):
        directory.mkdir()
    write_rollouts(drawn, prompts, job, 2)
    write_calibration(calibrated, rollouts=drawn, reference=job.reference, reward=job.reward, law=job.law, weights={})
    combination = load_calibration(calibrated)[0]

    def trained(available: float, **compute: Any) -> dict[str, Any]:
        machine(available)
        task = Task(
            directory=tmp_path,
            prompts=prompts,
            rollouts=drawn,
            reference=job.reference,
            scorer=CombinedScorer.load(job.reward, combination, job.reference),
            combination=combination,
            procedure=Mixture.of(Standard()),
            transformation=Identity(),
            law=job.law,
            config=Ctrl(
                solver="regression",
                target_kl=0.1,
                learning_rate=1e-3,
                optimiser="adam",
                prompts=2,
                generations=4,
                steps=3,
            ),
            compute=Compute(**compute),
            seed=0,
        )
        regression.solve(task, tmp_path / "policy")
        return load_file(tmp_path / "policy" / "model.safetensors")

    whole, parts = trained(8 * GB), trained(2e6)
    assert json.loads((tmp_path / "memory.json").read_text())["sequences"] < 8
    frugal, coarse = trained(8 * GB, gradient_checkpointing=True), trained(8 * GB, precision="bfloat16")
    for name, weights in whole.items():
        np.testing.assert_allclose(weights, parts[name], atol=1e-5)
        np.testing.assert_allclose(weights, frugal[name], atol=1e-5)
        np.testing.assert_allclose(weights, coarse[name], atol=1e-2)
    assert any(not np.array_equal(weights, coarse[name]) for name, weights in whole.items())


@pytest.mark.parametrize(
    ("most", "size", "lengths"),
    [
        pytest.param(1024, draw_bytes(DEMO, 85), [1024, 1024, 452], id="demo: drawn as ever"),
        pytest.param(512, forward_bytes(DEMO, 85), [512, 512, 512, 512, 452], id="demo: scored as ever"),
        pytest.param(256, compare_bytes(DEMO, 85, 64), [256] * 9 + [196], id="demo: compared as ever"),
        pytest.param(256, compare_bytes(SMOLLM, 128, 64), [31] * 80 + [20], id="a vocabulary of 49k"),
        pytest.param(4, 1 << 40, [1] * 2500, id="one at least"),
    ],
)
def test_batches_are_those_of_old_where_they_fit(most: int, size: int, lengths: list[int]) -> None:
    rows = range(2500)
    found = list(batches(rows, most, lambda _: size))
    assert [len(batch) for batch in found] == lengths
    assert [row for batch in found for row in batch] == list(rows)


def test_a_long_row_makes_its_own_batch_small_and_no_other() -> None:
    rows = [1] * 10 + [1 << 30] * 3
    assert [len(batch) for batch in batches(rows, 8, lambda row: row)] == [8, 2, 2, 1]


@pytest.mark.parametrize(("gpu", "budget"), [(0, 2), (12, 2), (24, 2), (40, 4), (79.2, 8), (140, 16)])
def test_a_larger_gpu_draws_more_at_a_time(monkeypatch: pytest.MonkeyPatch, gpu: float, budget: int) -> None:
    monkeypatch.setattr(memory, "gpu_memory", lambda: int(gpu * 2**30))
    assert memory.batch_budget() == budget << 30


def group(directory: Path, limit: str, usage: int, idle: int, old: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    (directory / names[0]).write_text(f"{limit}\n")
    (directory / names[1]).write_text(f"{usage}\n")
    total = "total_" if old else ""
    files = f"{total}inactive_file {idle // 2}\n{total}active_file {idle - idle // 2}\n"
    (directory / "memory.stat").write_text(f"anon 5\n{files}")


@pytest.mark.parametrize(
    ("own", "groups", "found"),
    [
        pytest.param("0::/a/b\n", {"a/b": ("100", 60, 20), "a": ("max", 90, 0)}, [60], id="version 2"),
        pytest.param("0::/a/b\n", {"a/b": ("100", 60, 20), "a": ("70", 65, 0)}, [60, 5], id="version 2, nested"),
        pytest.param("0::/\n", {".": ("100", 120, 0)}, [0], id="above its limit"),
        pytest.param("0::/not/mounted\n", {".": ("100", 40, 0)}, [60], id="in a container"),
        pytest.param("4:memory:/a\n2:cpu:/a\n", {"memory/a": ("100", 60, 20)}, [60], id="version 1"),
        pytest.param("4:cpu:/a\n", {"cpu/a": ("100", 60, 20)}, [], id="another controller"),
    ],
)
def test_limits_of_control_groups_are_read(
    tmp_path: Path, own: str, groups: dict[str, tuple[str, int, int]], found: list[int]
) -> None:
    (tmp_path / "own").write_text(own)
    for place, (limit, usage, idle) in groups.items():
        group(tmp_path / "mounted" / place, limit, usage, idle, old="memory:" in own)
    assert list(cgroup_memory(tmp_path / "mounted", tmp_path / "own")) == found


def test_the_shape_of_a_model_counts_its_weights(tmp_path: Path) -> None:
    config = Scratch(vocabulary=300, hidden=64, layers=2, positions=64)
    model = new_model(train_tokenizer(["a b"], 300), config)
    shape = scratch_shape(config)
    shape = replace(shape, vocabulary=model.config.vocab_size)
    assert shape.weights == sum(weight.numel() for weight in model.parameters())
    model.save_pretrained(tmp_path)
    assert read_shape(tmp_path) == shape_of(model.config.to_dict()) == shape


@pytest.mark.parametrize(
    ("config", "known"),
    [
        pytest.param({"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 9}, True, id="names of GPT-2"),
        pytest.param(
            {"text_config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 9}},
            True,
            id="the text part of another",
        ),
        pytest.param({"hidden_size": 64}, False, id="something else"),
    ],
)
def test_a_model_of_unknown_sizes_has_no_shape(config: dict[str, Any], known: bool) -> None:
    assert (shape_of(config) is not None) == known


def plan(runs: Path, *overrides: str) -> list[list[str]]:
    """The rows of a plan, as cells."""
    options = [part for override in (*TINY, *overrides) for part in ("--set", override)]
    done = CliRunner().invoke(infalign, ["train", "demo", *options, "--plan"], env={"INFALIGN_HOME": str(runs)})
    assert done.exit_code == 0, done.output
    return [line.split() for line in done.stdout.splitlines()]


def test_a_plan_estimates_what_it_knows_and_says_what_it_does_not(tmp_path: Path, written: Path, machine: Any) -> None:
    machine(8 * GB)
    head, *rows = plan(tmp_path)
    assert head == ["stage", "memory", "time"]
    assert rows[1] == ["sft", "to", "run", "unknown", "unknown"]
    assert rows[0] == ["data", "to", "run"]
    stage, *_ = pipeline.plan(load_config("demo", TINY), tmp_path / "runs")
    shutil.copytree(written, stage.directory)
    _, *rows = plan(tmp_path)
    assert rows[0] == ["data", "reused"]
    for name, *cells in rows[1:]:
        assert len(cells) == (2 if name == "calibrate" else 6), cells
    _, *rows = plan(tmp_path, "sft=null", "model={base: {path: org/not-here, positions: 64}}")
    assert rows[1:3] == [["sft", "to", "run"], ["reward", "to", "run", "unknown", "unknown"]]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.0, "0.4–2 s"), (40, "20–100 s"), (100, "0.7–4 min"), (1800, "10–80 min"), (36000, "4–20 h")],
)
def test_a_time_is_a_range(seconds: float, text: str) -> None:
    assert planning.as_range(seconds) == text
