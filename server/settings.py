"""The operator's settings. Each field is an option of ``infalign serve``; everything else is in the bundle."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from infalign.errors import InvalidValue
from infalign.names import is_http_address
from infalign.values import parse_assignment, parse_yaml

ASSIGNMENT = re.compile(r"[\w.-]+=")
"""The start of ``KEY=VALUE``."""


ORIGIN_HOST = r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?"
"""Host and port of an origin as browsers send it: lower case, without a path."""


def split_name(text: str) -> tuple[str, str]:
    """Split ``NAME=URL`` into name and URL. The name is empty if the text is only a URL."""
    name, equals, url = text.partition("=")
    return (name, url) if equals and "://" not in name else ("", text)


def _check_url(text: str) -> str:
    if not is_http_address(text):
        raise ValueError("addresses such as http://host:8001, with commas between them")
    return text.rstrip("/")


def _check_named_url(text: str) -> str:
    name, url = split_name(text)
    return f"{name}={_check_url(url)}" if name else _check_url(url)


def _check_origin(text: str) -> str:
    scheme, _, rest = text.rpartition("://")
    if text != "*" and not (scheme in ("http", "https") and re.fullmatch(ORIGIN_HOST, rest)):
        raise ValueError("origins such as https://app.example, with commas between them, or * for all")
    return text


def _split_commas(value: Any) -> Any:
    """Split a text, or each of several, at its commas."""
    texts = value if isinstance(value, list | tuple) else [value]
    is_text = all(isinstance(text, str) for text in texts)
    return [part.strip() for text in texts for part in text.split(",")] if is_text else value


def _read_engine_values(value: Any) -> Any:
    """Join the parts of one setting: a text with ``KEY=VALUE`` or a YAML mapping, a mapping, or several of these."""
    values: dict[str, Any] = {}
    for part in value if isinstance(value, list | tuple) else [value]:
        if isinstance(part, str):
            try:
                new = dict([parse_assignment(part, "", "")]) if ASSIGNMENT.match(part) else parse_yaml(part, "", part)
            except InvalidValue as error:
                raise ValueError("KEY=VALUE with a value in YAML, such as max_model_len=4096") from error
        else:
            new = part
        if not isinstance(new, Mapping):
            raise ValueError("KEY=VALUE, such as max_model_len=4096, or a YAML mapping")
        values |= new
    return values


def _check_distinct(urls: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(urls)) < len(urls):
        raise ValueError("each address once")
    return urls


COMMA_LIST = (BeforeValidator(_split_commas), AfterValidator(_check_distinct))
Urls = Annotated[tuple[Annotated[str, AfterValidator(_check_url)], ...], *COMMA_LIST]
NamedUrls = Annotated[tuple[Annotated[str, AfterValidator(_check_named_url)], ...], *COMMA_LIST]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_check_origin)], ...], *COMMA_LIST]
EngineValues = Annotated[Mapping[str, Any], BeforeValidator(_read_engine_values)]


class Settings(BaseModel):
    """Settings of one server. Unknown keys are refused.

    A field ``max_n`` is the option ``--max-n`` and the environment variable ``INFALIGN_MAX_N``. Its description is the
    help text of the option.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to bind.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    max_n: int = Field(64, ge=1, description="Largest N of a request.")
    limit_n: bool = Field(
        False,
        description="Refuse an N beyond the largest that a judge supports, by the bundle; without, answers warn of it.",
    )
    bundles: Path | None = Field(None, description="Folder of bundles whose adapters an administrator may load.")
    max_adapters: int = Field(4, ge=1, description="Adapters that are served at a time, where policies are adapters.")
    max_requests: int = Field(64, ge=1, description="Requests that are worked on at a time; the next gets 429.")
    regret_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the requests that stopped early whose other candidates are drawn afterwards, in the "
        "background, to measure what stopping cost; 0 draws none.",
    )
    deadline: float = Field(600, gt=0, description="Seconds a request may take, and the most it may ask for.")
    max_sequences: int = Field(64, ge=1, description="Sequences an engine runs at a time.")
    on_engine_failure: Literal["restart", "exit"] = Field(
        "restart",
        description=(
            "What is done when an engine has died or hangs: start all again, or end the server. With restart, an "
            "engine that was started when it was needed starts again alone, when it is next needed."
        ),
    )
    engine_silence: float = Field(
        120, gt=0, description="Seconds that an engine with work to do may give no sign of life before it is hung."
    )
    drain: int = Field(30, ge=0, description="Seconds that SIGTERM leaves to requests in flight.")
    kv_cache_mib: int | None = Field(
        None,
        ge=16,
        description="KV cache of each engine on CPU, in MiB [default: 256, or what a text of the whole context takes].",
    )
    engine_threads: int | None = Field(
        None,
        ge=1,
        description="Threads of each engine on CPU, at most one for each core of this process [default: all cores].",
    )
    compile: bool = Field(
        False,
        description="Compile the models on CPU too: 5 to 20% faster. Needs a C++ compiler and a minute at start.",
    )
    block_size: int | None = Field(
        None,
        ge=1,
        description="Tokens of a block of the KV cache; candidates share whole blocks of their prompt [default: 32 on "
        "CPU, a multiple of it is accepted there; vLLM's own on GPU].",
    )
    reward_step_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens that a reward model's engine reads in one step, at least --max-sequences [default: 1024 on "
        "CPU, 8192 on GPU].",
    )
    gpu_memory: float = Field(
        0.4, gt=0, le=1, description="Share of GPU memory of the policy's engine, and of the reward models' together."
    )
    reference_gpu_memory: float = Field(
        0.15,
        gt=0,
        le=1,
        description="Share of GPU memory of the reference's engine, where calibrations on demand need one of its own.",
    )
    scorer_gpu_memory: float = Field(
        0.15,
        gt=0,
        le=1,
        description="Share of GPU memory of the prefix scorer's engine, which starts when it is needed.",
    )
    calibration_concurrency: int = Field(
        8, ge=1, description="Reference draws at a time, of all calibrations on demand together."
    )
    calibration_store: Path | None = Field(
        None,
        description="File that keeps calibrations drawn on demand [default: calibrations.sqlite in $INFALIGN_HOME].",
    )
    calibration_store_mib: int = Field(64, ge=1, description="Largest size of that file, in MiB.")
    log_format: Literal["text", "json"] = Field("text", description="Form of log lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least important lines that are logged; requests are info."
    )
    log_text: bool = Field(False, description="Log prompts and selected texts too.")
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Collector of OpenTelemetry traces, such as http://localhost:4318; no traces without.",
    )
    reasoning_parser: str | None = Field(
        None,
        description="vLLM's parser that separates the reasoning of the policies from their answers [default: the one "
        "that the bundle was calibrated with].",
    )
    tool_parser: str | None = Field(
        None, description="vLLM's parser that reads tool calls from answers; without one, requests have no tools."
    )
    dtype: str = Field("auto", description="Weights and activations: auto, float32, bfloat16 or float16.")
    keys: Path | None = Field(
        None, description="File of API keys (see `infalign key`); without one only this machine is served."
    )
    audit_log: Path | None = Field(
        None, description="File that calls for worst-of-n or unfiltered candidates are noted in; stderr if left out."
    )
    cors_origins: Origins = Field(
        (), description="Origins whose pages may call, such as https://app.example; with keys also *, for all."
    )
    max_body_kib: int = Field(1024, ge=1, description="Largest request body, in KiB.")
    max_header_kib: int = Field(64, ge=1, description="Largest request line and headers of a request, in KiB.")
    max_connections: int = Field(
        2048,
        ge=1,
        description="Connections that are open at a time; a new one closes the one that is idle for longest.",
    )
    idle_timeout: float = Field(
        75,
        gt=0,
        description="Seconds that a connection may be idle, and that the headers of a request may take to arrive. "
        "A body may take a second more for each KiB.",
    )
    trust_rewards: bool = Field(
        False, description="Run the functions, and ask the services and judges, that the bundle names as rewards."
    )
    policy_urls: Urls = Field((), description="vLLM servers of the policies; none is started here then.")
    reward_urls: NamedUrls = Field((), description="vLLM servers of the reward model; of several, NAME=URL for each.")
    reference_urls: Urls = Field((), description="vLLM servers of the reference, where those of the policies lack it.")
    scorer_urls: Urls = Field((), description="vLLM servers of the prefix scorer; nothing that needs it without.")
    remote_timeout: float = Field(
        30, gt=0, description="Seconds that a vLLM server may say nothing, on all its calls, before it is set aside."
    )
    engines: Path | None = Field(
        None,
        description="YAML file with settings of the engines by vLLM's names, in sections policy, reference, "
        "reward, rewards and scorer.",
    )
    policy_engine: EngineValues = Field(
        {}, description="Setting of the policies' engine by vLLM's name, such as max_model_len=4096; again for more."
    )
    reference_engine: EngineValues = Field(
        {}, description="The same for the reference's engine, where the reference has one of its own."
    )
    reward_engine: EngineValues = Field(
        {}, description="The same for the engines of all reward models, or with NAME.KEY=VALUE for one of them."
    )
    scorer_engine: EngineValues = Field({}, description="The same for the prefix scorer's engine.")

    @property
    def are_engines_elsewhere(self) -> bool:
        """Whether the engines are vLLM servers."""
        return any((self.policy_urls, self.reward_urls, self.reference_urls, self.scorer_urls))

    def adopt_parser(self, calibrated: str | None) -> "Settings":
        """Return the settings with the parser of reasoning that a bundle was calibrated with, if there was one.

        Args:
            calibrated: The bundle's parser.

        Raises:
            InvalidValue: The operator has chosen another one.
        """
        if calibrated is None:
            return self
        if self.reasoning_parser not in (None, calibrated):
            requirement = f"{calibrated}, with which the bundle was calibrated"
            raise InvalidValue("--reasoning-parser", self.reasoning_parser, requirement)
        return self.model_copy(update={"reasoning_parser": calibrated})

    @field_validator("engines", "policy_engine", "reference_engine", "reward_engine", "scorer_engine")
    @classmethod
    def _check_engines_are_here(cls, value: Any, info: ValidationInfo) -> Any:
        if value and any(
            info.data.get(urls) for urls in ("policy_urls", "reward_urls", "reference_urls", "scorer_urls")
        ):
            raise ValueError("none beside --policy-urls: vLLM servers have settings of their own")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_all_origins(cls, origins: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "*" in origins and info.data.get("keys") is None:
            raise ValueError("* only with --keys: without keys every page could call; name the origins instead")
        return origins
