from pathlib import Path

import pytest

from infalign import InvalidValue
from training.config import SHIPPED, load_config


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_read(path: Path) -> None:
    assert load_config(path.stem) == load_config(str(path))


def test_overrides_reach_their_key() -> None:
    config = load_config("demo", ("ctrl.target_kl=1.5", "transformation=log", "seed=3"))
    assert (config.ctrl.target_kl, config.transformation, config.seed) == (1.5, "log", 3)


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((SHIPPED / "demo.yaml").read_text() + "crtl:\n  steps: 3\n")
    with pytest.raises(InvalidValue, match=r"crtl: .*did you mean ctrl"):
        load_config(str(path))


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", ""])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InvalidValue, match="CONFIG: got"):
        load_config(str(path))
