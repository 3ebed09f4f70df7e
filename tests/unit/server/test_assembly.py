"""What a bundle is made of is loaded without running code that comes with it."""

import json
from pathlib import Path

import pytest

from infalign import read_bundle
from infalign.errors import InvalidValue
from server.assembly import assemble, load_tokenizer
from server.engines import Sampling
from server.settings import Settings
from tests.commands import run_here
from tests.tiny import tiny_job
from tests.vllm_server import VllmServer
from training.tokenizer import train_tokenizer


def test_a_tokenizer_with_code_of_its_own_is_refused_without_a_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tokenizer(["why and how"], 300).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("why")["input_ids"]
    config = tmp_path / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    config.write_text(json.dumps(json.loads(config.read_text()) | own))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    capsys.readouterr()
    with pytest.raises(InvalidValue, match="accepted: a tokenizer that needs no code of its own") as refused:
        load_tokenizer(tmp_path)
    assert "\n" not in str(refused.value)
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "ran").exists()


@pytest.mark.anyio
async def test_the_server_of_a_policy_that_is_the_reference_draws_from_the_reference(tmp_path: Path) -> None:
    """A bundle of models that exist, whose policy is elsewhere and whose reward is a function."""
    policy = tiny_job(tmp_path, samples=1, max_tokens=1).reference
    options = ["--policy", str(policy), "--reward", "function:tests.reward_functions:length", "--samples", "2"]
    options += ["--max-tokens", "4", "--name", "mine", "--engine", "transformers", "--output", str(tmp_path / "made")]
    done = run_here("bundle", *options, INFALIGN_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    with VllmServer("mine", max_model_len=64) as server:
        settings = Settings(policy_urls=(server.url,), trust_rewards=True)
        engines, served = assemble(read_bundle(tmp_path / "made"), settings)
        await engines.start()
        try:
            assert engines.context == 64
            law = served.bundle.manifest.sampling
            assert (await engines.generate([5], Sampling.from_law(law, policy=None, seed=7))).text == "answer of 7"
            assert await engines.score([]) == []
        finally:
            engines.stop()
            for reward in served.rewards.values():
                reward.close()
