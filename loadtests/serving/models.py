"""The models of the benchmark: random weights, of a size at which engines are busy; and a bundle of them."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from string import ascii_lowercase

import yaml

HIDDEN, LAYERS, POSITIONS = 512, 8, 2048
LENGTH = 190
"""Tokens of a prompt, where its length is not what varies."""
CONFIG = {
    "name": "benchmark",
    "seed": 0,
    "procedure": "best-of-4",
    "transformation": "identity",
    "rollouts": {"samples": 8, "max_tokens": 16},
    "ctrl": {"target_kl": 0.5, "learning_rate": 0.0001, "prompts": 4, "generations": 2, "steps": 1},
}


@dataclass(frozen=True)
class Models:
    """A policy and a reward model of random weights, and prompts for them.

    Args:
        directory: where they are, or are made.
        vocabulary: tokens.
    """

    directory: Path
    vocabulary: int

    def words(self) -> list[str]:
        """Made-up words, as many as leave room in the vocabulary for their parts."""
        random, letters = Random(0), 3 if self.vocabulary < 10_000 else 4
        return [
            "".join(random.choice(ascii_lowercase) for _ in range(letters)) for _ in range(self.vocabulary * 2 // 3)
        ]

    def prompts(self, count: int, length: int, seed: int) -> list[str]:
        """Texts that share no beginning, of about ``length`` tokens each (a word is one)."""
        random, known = Random(seed), self.words()
        return [" ".join(random.choice(known) for _ in range(length)) for _ in range(count)]

    def make(self) -> None:
        """Write them, unless they are there."""
        import torch
        from transformers import LlamaConfig, LlamaForSequenceClassification

        from training.config import Scratch
        from training.models import new_model
        from training.tokenizer import train_tokenizer

        if (self.directory / "reward" / "config.json").exists():
            return
        torch.manual_seed(0)
        tokenizer = train_tokenizer([" ".join(self.words())], self.vocabulary)
        scratch = Scratch(vocabulary=self.vocabulary, hidden=HIDDEN, layers=LAYERS, positions=POSITIONS)
        policy = new_model(tokenizer, scratch)
        reward = LlamaForSequenceClassification(LlamaConfig.from_dict(policy.config.to_dict() | {"num_labels": 1}))
        for name, model in (("policy", policy), ("reward", reward)):
            model.save_pretrained(self.directory / name)
            tokenizer.save_pretrained(self.directory / name)

    def bundle(self, checkout: Path) -> Path:
        """A bundle of them that the code in ``checkout`` serves, made by its own pipeline unless it is there."""
        home = self.directory / f"home-{checkout.name}"
        output = home / "bundle"
        if output.exists():
            return output
        rows = self.directory / "prompts.jsonl"
        rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in self.prompts(48, 8, seed=1)))
        config = CONFIG | {
            "data": {"prompts": {"paths": [str(rows)], "held_out": 8}},
            "model": {"base": {"path": str(self.directory / "policy"), "positions": POSITIONS}},
            "reward": {"classifiers": [{"path": str(self.directory / "reward"), "higher_is": "better"}]},
        }
        home.mkdir(parents=True)
        (home / "config.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "infalign", "train", str(home / "config.yaml"), "--output", str(output)]
        subprocess.run(command, check=True, cwd=checkout, env=environment(checkout) | {"INFALIGN_HOME": str(home)})
        return output


def environment(checkout: Path) -> dict[str, str]:
    """That in which the code of ``checkout`` runs."""
    return os.environ | {"PYTHONPATH": str(checkout)}
