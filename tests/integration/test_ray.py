"""The application on Ray Serve, on one CPU of this machine, over engines in memory."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from infalign import Bundle
from server.app import ServedBundle
from server.engines import Engines
from server.ray import Arguments, build_app
from server.settings import Settings
from tests.fakes import FakeEngines, fake_served

ROOT = Path(__file__).parents[2]


def in_memory(bundle: Bundle, settings: Settings, reference: bool) -> tuple[Engines, ServedBundle]:
    return FakeEngines(), fake_served()


@pytest.fixture
def url(bundle: Bundle) -> Iterator[str]:
    import ray
    from ray import serve

    ray.init(num_cpus=1, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": 8123})
        serve.run(build_app(Arguments(bundle=bundle.path, max_n=8), in_memory), name="infalign")
        yield "http://127.0.0.1:8123"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_the_application_answers_and_streams_through_serve(url: str) -> None:
    assert httpx.get(f"{url}/ready").json()["status"] == "ready"
    body = {"prompt": "x", "n": 8, "seed": 0}
    assert httpx.post(f"{url}/v1/best-of-n", json=body).json()["selected"][0]["text"] == "answer 7"
    assert httpx.post(f"{url}/v1/best-of-n", json=body | {"n": 9}).json()["error"]["param"] == "n"
    with httpx.stream("POST", f"{url}/v1/completions", json={"prompt": "x", "stream": True}) as answer:
        assert [line for line in answer.iter_lines() if line][-1] == "data: [DONE]"


def test_the_shipped_config_is_one_that_serve_accepts() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text()))
    (replicas,) = config.applications[0].deployments
    assert replicas.name == "infalign"
    assert replicas.autoscaling_config["max_replicas"] == 8
