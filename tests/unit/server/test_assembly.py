"""What a bundle is made of is loaded without running code that comes with it."""

import json
from pathlib import Path

import pytest

from infalign.errors import InvalidValue
from server.assembly import load_tokenizer
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
