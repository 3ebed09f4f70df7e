"""The models of the benchmark: random weights, of a size at which engines are busy; and a bundle of them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from string import ascii_lowercase

import yaml

WORDS = 3000
VOCABULARY, HIDDEN, LAYERS, POSITIONS = 4096, 512, 8, 2048
CONFIG = {
    "name": "benchmark",
    "seed": 0,
    "procedure": "best-of-4",
    "transformation": "identity",
    "rollouts": {"samples": 8, "max_tokens": 16},
    "ctrl": {"target_kl": 0.5, "learning_rate": 0.0001, "prompts": 4, "generations": 2, "steps": 1},
}


def words(seed: int = 0) -> list[str]:
    """Made-up words."""
    random = Random(seed)
    return ["".join(random.choice(ascii_lowercase) for _ in range(3)) for _ in range(WORDS)]


def prompts(count: int, length: int, seed: int) -> list[str]:
    """Texts that share no beginning, of about ``length`` tokens each (a word is one)."""
    random, vocabulary = Random(seed), words()
    return [" ".join(random.choice(vocabulary) for _ in range(length)) for _ in range(count)]


def make(directory: Path) -> Path:
    """Write the models into ``directory``, unless they are there; returns the directory of policy and reward model."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from training.config import Scratch
    from training.models import new_model
    from training.tokenizer import train_tokenizer

    if (directory / "reward" / "config.json").exists():
        return directory
    torch.manual_seed(0)
    tokenizer = train_tokenizer([" ".join(words())], VOCABULARY)
    scratch = Scratch(vocabulary=VOCABULARY, hidden=HIDDEN, layers=LAYERS, positions=POSITIONS)
    policy = new_model(tokenizer, scratch)
    reward = LlamaForSequenceClassification(LlamaConfig.from_dict(policy.config.to_dict() | {"num_labels": 1}))
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    return directory


def bundle(models: Path, checkout: Path) -> Path:
    """The models as a bundle that the code in ``checkout`` serves, made by its own pipeline unless it is there."""
    home = models / f"home-{checkout.name}"
    output = home / "bundle"
    if output.exists():
        return output
    rows = models / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts(48, 8, seed=1)))
    config = CONFIG | {
        "data": {"prompts": {"paths": [str(rows)], "held_out": 8}},
        "model": {"base": {"path": str(models / "policy"), "positions": POSITIONS}},
        "reward": {"classifiers": [{"path": str(models / "reward"), "higher_is": "better"}]},
    }
    home.mkdir(parents=True)
    (home / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "infalign", "train", str(home / "config.yaml"), "--output", str(output)]
    subprocess.run(command, check=True, cwd=checkout, env=environment(checkout) | {"INFALIGN_HOME": str(home)})
    return output


def environment(checkout: Path) -> dict[str, str]:
    """That in which the code of ``checkout`` runs."""
    return os.environ | {"PYTHONPATH": str(checkout)}
