"""Why an engine did not start, in one line."""

import logging

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from server.engines import failure


class Parallel(BaseModel):
    """Refuses as vLLM's configs do."""

    size: int
    name: str = ""

    @field_validator("name")
    @classmethod
    def _refuse(cls, name: str) -> str:
        raise ValueError(f"{name} is not\n a name")


def refuse(**values: object) -> ValidationError:
    with pytest.raises(ValidationError) as refused:
        Parallel.model_validate(values)
    return refused.value


def test_what_vllm_refuses_is_put_on_one_line() -> None:
    assert failure.explain(refuse(size="two", name="x")) == (
        "size: Input should be a valid integer, unable to parse string as an integer; name: x is not a name"
    )
    assert failure.explain(NotImplementedError("no\nsuch thing")) == "no such thing"
    assert str(failure.start_failure("policy", ValueError("no"))) == "policy: no"


def test_the_first_error_of_a_process_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(failure.NOTE, raising=False)
    monkeypatch.delenv(failure.FOLDER, raising=False)
    for name in failure.LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    failure.prepare_notes()
    failure.note_failures("abc")  # here as in an engine's process
    failure.watch_reports()
    log = logging.getLogger(failure.LOGGERS[0])
    for text, report in (
        ("busy", "Invocation failed"),
        ("no\nmemory", "EngineCore failed to start."),
        ("x", "failed to start"),
    ):
        try:
            raise ValueError(text)
        except ValueError:
            log.exception(report)
    general = RuntimeError("Engine core initialization failed.")
    assert str(failure.start_failure("reward model safety", general, "abc")) == "reward model safety: no memory"
    assert str(failure.start_failure("reward model safety", general, "abc")) == f"reward model safety: {general}"
