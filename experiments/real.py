r"""The paper's claim on real text: does aligning for the decoding procedure win under that procedure?

    python experiments/real.py --model SmolLM2-135M-Instruct.Q4_1.gguf --transcripts hh-harmless.jsonl.gz \
        --pool alpaca-eval-pool.jsonl.gz --output docs/results

Two tasks, on one small pretrained model:

- harmlessness: prompts and comparisons of HH-RLHF, worst-of-4
- helpfulness: prompts of AlpacaEval, comparisons among the answers of many systems by a language model, best-of-4

For each, a reward model and a judge learn from disjoint comparisons of prompts that nothing is measured on. Three
policies are trained by the pipeline, with adapters and the same budget, and settled at the same KL on validation
prompts: CTRL with the optimal transformation for the procedure, the calibrated identity, and RLHF on the raw reward.
All are measured on test prompts.

An experiment that was interrupted goes on where it stopped: stages are cached as in any run, and measurements by the
policy that they are of. A GPU is used if there is one. docs/results/real.md says how long it takes.
"""

import gc
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from math import log10
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import click
import numpy as np

from infalign import Estimate, estimators, over_prompts, point
from infalign.home import home
from infalign.parsing import parse_procedure
from infalign.procedures import BestOfN, Procedure, Standard, WorstOfN

PROCEDURES: tuple[Procedure, ...] = (Standard(), BestOfN(4), WorstOfN(4))
"""Procedures that policies are measured under."""
RESPONSE, PROMPT, CONTEXT = 48, 160, 448
"""Tokens: longest response, longest prompt of a policy, longest prompt and response of a reward model."""
DRAWS = 64
"""Responses per test prompt and model."""
PAIRS, MEASURED = 8, 2
"""Comparisons per prompt and half of a pool, and every which of them measures accuracy if the prompt is held out."""
DECEIVERS = ("NullModel", "gpt4_gamed")
"""Systems of the pool whose answers were made to deceive its judge."""
LEAST_SCORE = 1e-6
"""Scores of a pool below this are taken for this."""
PARTS = ("reward", "judge")
"""The two models that learn from comparisons: the one that is maximised and selects, and the one that only judges."""
REWARD: dict[str, Any] = {
    "seed": 0,
    "data": {"preferences": {"held_out": 2}},  # all others train; what is measured is measured on other prompts
    "model": {"base": {"positions": CONTEXT, "pad_token": "<|endoftext|>"}},
    "reward": {"train": {"learning_rate": 0.0005, "batch": 32, "epochs": 2, "lora": {"rank": 16, "alpha": 32}}},
    "rollouts": {"samples": 1, "max_tokens": RESPONSE},  # the run ends before them
}
"""Config of a reward model."""
POLICY: dict[str, Any] = {
    "seed": 0,
    "data": {"preferences": {"held_out": 120}},
    "model": {"base": {"positions": PROMPT + RESPONSE, "pad_token": "<|endoftext|>"}},
    "rollouts": {"samples": 32, "max_tokens": RESPONSE},
    "ctrl": {
        "target_kl": 0.5,
        "learning_rate": 0.001,
        "optimiser": "adam",
        "prompts": 24,
        "generations": 8,
        "steps": 64,
        "anneal": 0.7,
        "lora": {"rank": 8, "alpha": 16},
    },
}
"""Config of a policy."""


class Comparison(NamedTuple):
    """Two responses to one prompt."""

    prompt: list[dict[str, str]]
    """The conversation."""
    chosen: str
    """The better response."""
    rejected: str
    """The worse response."""
    half: int
    """Which of the two models may learn from it: 0 for the reward model, 1 for the judge."""


@dataclass(frozen=True)
class Task:
    """What is aligned for what."""

    name: str
    """Name of the task."""
    procedure: str
    """Decoding procedure that the policy is aligned for."""
    prompts: int
    """Prompts of the policies, at most: to train, validate and test."""
    read: Callable[[Path, Random], Iterator[Comparison]]
    """Reads the comparisons of a file."""


@dataclass(frozen=True)
class Method:
    """What is maximised."""

    name: str
    """Name of the method."""
    transformation: str
    """The transformation Φ."""
    aligned: bool
    """Whether Φ is made for the procedure of the task. If not, it is for a single draw."""


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    model: str
    """Directory or hub id of the reference."""
    overrides: tuple[str, ...] = ()
    """Keys of the policies' config, as ``key=value``."""
    reward_overrides: tuple[str, ...] = ()
    """Keys of the reward models' config, as ``key=value``."""
    draws: int = DRAWS
    """Responses per test prompt and model."""
    prompts: int | None = None
    """Prompts of the policies of a task, if fewer than all."""


METHODS = (
    Method("CTRL optimal", "optimal", True),
    Method("calibrated identity", "identity", False),
    Method("RLHF, raw reward", "gaussian", False),
)
CLAIMS = (("CTRL optimal", "calibrated identity"), ("CTRL optimal", "RLHF, raw reward"))


def read_transcripts(file: Path, random: Random) -> Iterator[Comparison]:
    """Read the comparisons of HH-RLHF. Each prompt has one, so prompts alternate between the halves."""
    from training.data.examples import parse_transcript, read_examples
    from training.data.files import read_files

    examples, _ = read_examples(read_files([str(file)]), parse_transcript)
    random.shuffle(examples)
    for number, example in enumerate(examples):
        for chosen, rejected in example.pairs:
            yield Comparison(list(example.prompt), chosen, rejected, number % 2)


def read_pools(file: Path, random: Random) -> Iterator[Comparison]:
    """Read comparisons of the answers of a pool whose scores differ by about a factor of ten or more.

    The scores are probabilities that a language model prefers the answer to a fixed one, and most are near zero. Only
    their order of magnitude says something. The systems that answered are split into two halves by their names.
    """
    from training.data.files import read_files

    for row in read_files([str(file)]):
        answers = sorted(
            (answer["model"], answer["text"].strip(), round(log10(max(answer["score"], LEAST_SCORE))))
            for answer in row["responses"]
            if answer["model"] not in DECEIVERS
        )
        for half in (0, 1):
            pairs = [
                (first, second) if first[2] > second[2] else (second, first)
                for first, second in combinations(answers[half::2], 2)
                if first[2] != second[2] and first[1] and second[1]
            ]
            for better, worse in random.sample(pairs, min(PAIRS, len(pairs))):
                yield Comparison([{"role": "user", "content": row["prompt"]}], better[1], worse[1], half)


TASKS = (
    Task("harmless", "worst-of-4", 480, read_transcripts),
    Task("helpful", "best-of-4", 400, read_pools),
)


def inputs(task: Task) -> Path:
    """Return the folder of the files that the runs of a task read."""
    return home() / "real" / task.name


def reward_config(task: Task, part: str, settings: Settings) -> Any:
    """Make the config of the reward model or of the judge."""
    from training.configs import make_config

    values = deepcopy(REWARD) | {"name": f"real-{task.name}-{part}"}
    values["seed"] = PARTS.index(part)
    values["data"]["preferences"]["paths"] = [str(inputs(task) / f"{part}.jsonl")]
    values["model"]["base"]["path"] = settings.model
    return make_config(values, settings.reward_overrides)


def policy_config(task: Task, method: Method, settings: Settings, reward: Path = Path("reward")) -> Any:
    """Make the config of a policy. Before there is a reward model, it is enough for the stage ``data``."""
    from training.configs import make_config

    values = deepcopy(POLICY) | {
        "name": f"real-{task.name}",
        "procedure": task.procedure if method.aligned else "standard",
        "transformation": method.transformation,
        "reward": {"classifiers": [{"path": str(reward), "higher_is": "better", "name": "reward"}]},
    }
    values["data"]["preferences"]["paths"] = [str(inputs(task) / "policy.jsonl")]
    values["model"]["base"]["path"] = settings.model
    return make_config(values, settings.overrides)


def start_worker(threads: int) -> None:
    """Prepare a process that does jobs."""
    import torch

    from training.runtime import prepare_process

    torch.set_num_threads(threads)
    prepare_process()


def do_job(job: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Do a job in a worker, and return its result and the seconds that it took.

    On a GPU, products of float32 matrices are done in TF32, which is several times as fast. Reward models are trained
    without it, as they are then checked to give a text one reward. bfloat16 is not used: by rounding alone, two equal
    policies would be some 0.1 nats apart.
    """
    import torch

    start = time.monotonic()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("highest" if job is train_model else "high")
    try:
        return job(*arguments), time.monotonic() - start
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # for the processes beside this one


def prepare_model(source: str) -> str:
    """Return the directory of the model. A GGUF file is converted, unless it has been."""
    from training import gguf

    file = Path(source)
    if file.suffix != gguf.SUFFIX:
        return str(file.absolute()) if file.exists() else source
    directory = home() / "real" / file.stem
    if not directory.is_dir():
        gguf.convert(file, directory, "--model")
    return str(directory)


def prepare_task(task: Task, file: Path, settings: Settings) -> dict[str, int]:
    """Write the files of a task, and count what is in them.

    Responses are cut to the length of a policy's. The stage ``data`` chooses the prompts for validation and test from
    ``policy.jsonl``. The comparisons of all other prompts go to ``reward.jsonl`` and ``judge.jsonl``.
    """
    from infalign.templates import render_prompt, tokenise
    from training.data import read_prompts
    from training.pipeline import run_stages
    from training.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(settings.model, "--model", "a causal LM")

    @cache
    def cut(text: str) -> str:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        return str(tokenizer.decode(tokens[:RESPONSE])).strip()

    random = Random(task.name)
    by_prompt: dict[str, list[Comparison]] = defaultdict(list)
    for comparison in task.read(file, random):
        chosen, rejected = cut(comparison.chosen), cut(comparison.rejected)
        if chosen and rejected and chosen != rejected:
            by_prompt[_key(comparison.prompt)].append(comparison._replace(chosen=chosen, rejected=rejected))
    short = [
        key
        for key, group in by_prompt.items()
        if len(tokenise(tokenizer, render_prompt(tokenizer, group[0].prompt))) <= PROMPT
    ]
    random.shuffle(short)
    chosen_keys = short[: min(task.prompts, settings.prompts or task.prompts)]
    _write_rows(inputs(task) / "policy.jsonl", (c for key in chosen_keys for c in by_prompt[key][::MEASURED]))
    data = run_stages(policy_config(task, METHODS[0], settings), home() / "runs", until="data").data
    splits = {split: read_prompts(data, split) for split in ("train", "validation", "test")}
    held_out = {_key(prompt) for split in ("validation", "test") for prompt in splits[split]}
    counts = {split: len(prompts) for split, prompts in splits.items()}
    for half, part in enumerate(PARTS):
        rows = [c for key, group in by_prompt.items() if key not in held_out for c in group if c.half == half]
        _write_rows(inputs(task) / f"{part}.jsonl", rows)
        counts[part] = len(rows)
    return counts


def train_model(task: Task, part: str, settings: Settings) -> Path:
    """Train the reward model or the judge of a task, and return its directory."""
    from training.pipeline import run_stages

    return run_stages(reward_config(task, part, settings), home() / "runs", until="reward").reward


def calibrate(task: Task, reward: Path, settings: Settings) -> None:
    """Draw the rollouts of a task and calibrate its reward: the stages that all policies share."""
    from training.pipeline import run_stages

    run_stages(policy_config(task, METHODS[0], settings, reward), home() / "runs", until="calibrate")


def align(task: Task, method: Method, reward: Path, settings: Settings) -> None:
    """Train the policy of a method."""
    from training.pipeline import run_stages

    run_stages(policy_config(task, method, settings, reward), home() / "runs", until="ctrl")


def measure_models(task: Task, reward: Path, judge: Path, settings: Settings) -> dict[str, Estimate]:
    """Measure how often each model decides comparisons of held-out prompts rightly."""
    from training.data import HELD_OUT, read_rows
    from training.pipeline import run_stages
    from training.reward_model import compute_accuracy
    from training.scorer import Scorer

    data = run_stages(policy_config(task, METHODS[0], settings), home() / "runs", until="data").data
    rows = read_rows(data / HELD_OUT)
    models = {"reward": reward, "judge": judge}
    return {part: compute_accuracy(Scorer.load(model), rows) for part, model in models.items()}


def measure(task: Task, method: Method | None, reward: Path, judge: Path, settings: Settings) -> dict[str, Any]:
    """Draw responses to the test prompts, and score them with the reward model and the judge.

    Args:
        task: The task.
        method: Method of the policy that draws, or None for the reference.
        reward: Directory of the reward model.
        judge: Directory of the judge.
        settings: What the command line says.

    Returns:
        ``rewards`` and ``judged`` of shape (P, M), ``tokens``, the mean length of a response, and ``kl`` of shape (P,)
        and ``solved`` for a policy.
    """
    from training.data import read_prompts
    from training.evaluation.draws import KL_DRAWS
    from training.likelihoods import sequence_kl
    from training.pipeline import run_stages
    from training.sampler import Sampler, load_pair
    from training.scorer import Scorer
    from training.seeds import derive_seed

    config = policy_config(task, method or METHODS[0], settings, reward)
    artifacts = run_stages(config, home() / "runs", until="ctrl" if method else "calibrate")
    made_from = (artifacts.directories["ctrl" if method else "calibrate"], judge.parent)
    file = inputs(task) / f"{'-'.join(directory.name for directory in made_from)}-{settings.draws}.npz"
    if not file.is_file():
        repeats = [prompt for prompt in read_prompts(artifacts.data, "test") for _ in range(settings.draws)]
        figures: dict[str, Any] = {}
        if method:
            policy, reference = load_pair(artifacts.policy, artifacts.reference, config.law)
        else:
            policy = Sampler.load(artifacts.reference, config.law)
        tokens = policy.draw(repeats, derive_seed(0, "policy" if method else "reference"), "draws")
        if method:
            rows = [row for row in range(len(repeats)) if row % settings.draws < KL_DRAWS]
            kl = sequence_kl(policy, reference, [repeats[row] for row in rows], [tokens[row] for row in rows])
            figures["kl"] = kl.reshape(-1, min(KL_DRAWS, settings.draws)).mean(axis=1)
        texts = policy.text(tokens)
        for name, model in (("rewards", artifacts.reward), ("judged", judge)):
            figures[name] = Scorer.load(model).score(repeats, texts).astype(np.float64).reshape(-1, settings.draws)
        figures["tokens"] = np.mean([len(response) for response in tokens])
        part = file.with_suffix(".part.npz")
        np.savez(part, **figures)
        part.rename(file)
        with (inputs(task) / f"{file.stem}.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(text) + "\n" for text in texts)
    figures = dict(np.load(file))
    if method:
        figures["solved"] = json.loads((artifacts.policy.parent / "solved.json").read_text(encoding="utf-8"))
    return figures


def compute_agreement(rewards: Any, judged: Any) -> Estimate:
    """Compute how often the judge prefers that of two responses to a prompt which has the higher reward."""
    first, second = np.triu_indices(rewards.shape[1], 1)
    ours, theirs = (np.sign(scores[:, first] - scores[:, second]) for scores in (rewards, judged))
    return over_prompts((1 + ours * theirs).mean(axis=1) / 2)


def describe_reference(drawn: dict[str, Any]) -> dict[str, Any]:
    """Compute what the responses of the reference say about the models: see :func:`compute_agreement`.

    Args:
        drawn: What :func:`measure` returned for the reference.
    """
    return {
        "agreement": compute_agreement(drawn["rewards"], drawn["judged"]),
        "reference_tokens": float(drawn["tokens"]),
    }


def compare(task: Task, drawn: dict[str, dict[str, Any]], anchors: int) -> dict[str, Any]:
    """Compute the figures of the methods of a task.

    Args:
        task: The task.
        drawn: What :func:`measure` returned for each method that is measured, and for the reference by the name ''.
        anchors: K, rewards per prompt in the calibration.
    """
    theirs = drawn[""]
    each: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        if method.name not in drawn:
            continue
        ours = drawn[method.name]
        each[method.name] = {
            "kl": ours["kl"],
            "wins": {str(p): estimators.win_rate(ours["rewards"], theirs["rewards"], p) for p in PROCEDURES},
            "judged": {
                str(p): estimators.judged_win_rate(
                    ours["rewards"], ours["judged"], theirs["rewards"], theirs["judged"], p
                )
                for p in PROCEDURES
            },
        }
    methods = {
        name: {
            "kl": over_prompts(values["kl"]),
            "tokens": float(drawn[name]["tokens"]),
            "solved": drawn[name]["solved"],
            **{
                what: {procedure: over_prompts(wins) for procedure, wins in values[what].items()}
                for what in ("wins", "judged")
            },
        }
        for name, values in each.items()
    }
    gains = []
    for better, worse in CLAIMS:
        if {better, worse} <= each.keys():
            gain, judged = (
                over_prompts(each[better][what][task.procedure] - each[worse][what][task.procedure])
                for what in ("wins", "judged")
            )
            theory = [_theory(task, name, methods[name]["kl"].value, anchors) for name in (better, worse)]
            gains.append(
                {"better": better, "worse": worse, "gain": gain, "judged": judged, "room": theory[0] - theory[1]}
            )
    return {"methods": methods, "gains": gains}


def _theory(task: Task, name: str, kl: float, anchors: int) -> float:
    """Compute the win rate of the optimal policy of a method under the procedure of a task."""
    if kl <= 0:
        return 0.5
    method = next(method for method in METHODS if method.name == name)
    trained_for = parse_procedure(task.procedure if method.aligned else "standard")
    procedure = parse_procedure(task.procedure)
    return point(method.transformation, procedure, kl=kl, anchors=anchors, training_procedure=trained_for).win_rate


def write_tables(results: dict[str, Any]) -> str:
    """Write the tables of docs/results/real.md, from the contents of real.json."""
    tasks = [task for task in TASKS if "accuracy" in results.get(task.name, {})]
    lines = [
        "| task | prompts: train, validation, test | comparisons: reward, judge | accuracy of the reward model "
        "| accuracy of the judge | the judge agrees with the reward |",
        "|---" * 6 + "|",
    ]
    for task in tasks:
        row = results[task.name]
        counts, accuracy = row["counts"], row["accuracy"]
        lines.append(
            f"| {task.name} | {counts['train']}, {counts['validation']}, {counts['test']} "
            f"| {counts['reward']}, {counts['judge']} | {_text(accuracy['reward'])} | {_text(accuracy['judge'])} "
            f"| {_text(row['agreement']) if 'agreement' in row else ''} |"
        )
    tasks = [task for task in tasks if "methods" in results[task.name]]
    if not tasks:
        return "\n".join(lines) + "\n"
    for what, title in (("wins", "win rate by the reward model"), ("judged", "the same by the judge")):
        lines += ["", f"| task | {title} | KL | standard | best-of-4 | worst-of-4 |", "|---" * 6 + "|"]
        for task in tasks:
            for name, method in results[task.name]["methods"].items():
                cells = [_text(method["kl"]), *(_text(method[what][str(procedure)]) for procedure in PROCEDURES)]
                lines.append(f"| {task.name} | {name} | {' | '.join(cells)} |")
    lines += ["", "| under | better | than | gain | theory's room | gain by the judge |", "|---" * 6 + "|"]
    for task in tasks:
        for gain in results[task.name]["gains"]:
            lines.append(
                f"| {task.procedure} | {gain['better']} | {gain['worse']} | {_text(gain['gain'])} | {gain['room']:.3f} "
                f"| {_text(gain['judged'])} |"
            )
    return "\n".join(lines) + "\n"


def _text(estimate: dict[str, float] | Estimate) -> str:
    return str(estimate if isinstance(estimate, Estimate) else Estimate(**estimate))


class Experiment:
    """Runs the jobs of all tasks, as far as they do not wait for each other, and writes what is known.

    Args:
        pool: Processes that do the jobs.
        settings: What the command line says.
        output: Folder of the results.
    """

    def __init__(self, pool: ProcessPoolExecutor, settings: Settings, output: Path) -> None:
        self.pool, self.settings, self.output = pool, settings, output
        self.lock, self.start = threading.Lock(), time.monotonic()
        self.results: dict[str, Any] = {"seconds": {}}

    def run_task(self, task: Task, file: Path) -> None:
        """Run a task from its data to its figures."""
        settings = self.settings
        counts = self._do(f"{task.name}: data", prepare_task, task, file, settings)
        with ThreadPoolExecutor(len(METHODS) + 1) as threads:
            reward, judge = threads.map(
                lambda part: self._do(f"{task.name}: {part}", train_model, task, part, settings), PARTS
            )
            accuracy = threads.submit(self._do, f"{task.name}: accuracy", measure_models, task, reward, judge, settings)
            self._do(f"{task.name}: rollouts", calibrate, task, reward, settings)
            self._write(task, counts=counts, accuracy=accuracy.result())
            drawn: dict[str, dict[str, Any]] = {}
            samples = policy_config(task, METHODS[0], settings).rollouts.samples
            reference = threads.submit(
                self._do, f"{task.name}: reference", measure, task, None, reward, judge, settings
            )

            def follow(method: Method) -> None:
                self._do(f"{task.name}: {method.name}", align, task, method, reward, settings)
                figures = self._do(f"{task.name}: {method.name}, draws", measure, task, method, reward, judge, settings)
                drawn[""] = reference.result()
                with self.lock:
                    drawn[method.name] = figures
                    compared = compare(task, drawn, samples)
                self._write(task, samples=samples, **compared)

            policies = [threads.submit(follow, method) for method in METHODS]
            self._write(task, **describe_reference(reference.result()))
            for policy in policies:
                policy.result()

    def _do(self, name: str, job: Callable[..., Any], *arguments: Any) -> Any:
        """Have a process do a job, and note its time."""
        result, seconds = self.pool.submit(do_job, job, *arguments).result()
        with self.lock:
            self.results["seconds"][name] = round(seconds, 1)
        click.echo(f"{time.monotonic() - self.start:.0f} s: {name}, {seconds:.0f} s", err=True)
        return result

    def _write(self, task: Task, **figures: Any) -> None:
        """Add figures of a task, and write everything that is known into real.json."""
        with self.lock:
            self.results.setdefault(task.name, {"procedure": task.procedure}).update(figures)
            self.output.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.results, indent=1, default=asdict)
            (self.output / "real.json").write_text(text + "\n", encoding="utf-8")


def _key(prompt: Iterable[Any]) -> str:
    return json.dumps([[message["role"], message["content"]] for message in prompt])


def _write_rows(file: Path, comparisons: Iterable[Comparison]) -> None:
    """Write comparisons as preferences, in the format that ``data.preferences`` reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as stream:
        for c in comparisons:
            sides = {name: [{"role": "assistant", "content": getattr(c, name)}] for name in ("chosen", "rejected")}
            stream.write(json.dumps({"prompt": c.prompt, **sides}, ensure_ascii=False) + "\n")


@click.command()
@click.option("--model", required=True, help="The reference: a GGUF file, a directory or a hub id.")
@click.option("--transcripts", type=click.Path(exists=True, path_type=Path), help="Rows of HH-RLHF, for harmlessness.")
@click.option("--pool", type=click.Path(exists=True, path_type=Path), help="Pools of scored answers, for helpfulness.")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the results."
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes side by side.")
@click.option("--draws", type=click.IntRange(8), default=DRAWS, show_default=True, help="Responses per test prompt.")
@click.option("--prompts", type=click.IntRange(8), help="Prompts of a task at most, to try something out.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A key of the policies' config.")
@click.option("--set-reward", "rewards", multiple=True, metavar="KEY=VALUE", help="A key of the reward models' config.")
def main(
    model: str,
    transcripts: Path | None,
    pool: Path | None,
    output: Path,
    workers: int,
    draws: int,
    prompts: int | None,
    overrides: tuple[str, ...],
    rewards: tuple[str, ...],
) -> None:
    """Train and measure all methods on the tasks whose data is given, write real.json and print its tables."""
    tasks = [(task, file) for task, file in zip(TASKS, (transcripts, pool), strict=True) if file]
    if not tasks:
        raise click.UsageError("give --transcripts, or --pool, or both")
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, start_worker, (threads,)) as processes:
        converted = processes.submit(prepare_model, model)
        for _ in range(workers - 1):  # the other workers load their libraries meanwhile
            processes.submit(time.sleep, 0)
        directory = converted.result()
        experiment = Experiment(processes, Settings(directory, overrides, rewards, draws, prompts), output)
        with ThreadPoolExecutor(len(tasks)) as runners:
            for done in [runners.submit(experiment.run_task, task, file) for task, file in tasks]:
                done.result()
    results = json.loads((output / "real.json").read_text(encoding="utf-8"))
    click.echo(write_tables(results))


if __name__ == "__main__":
    main()
