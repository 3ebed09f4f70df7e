"""What the operator decides; everything else is in the bundle. Each field is an option of ``infalign serve``."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Settings of one server; unknown keys are refused.

    A field ``max_n`` is the option ``--max-n`` and the environment variable ``INFALIGN_MAX_N``; its description is the
    option's help.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to bind.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    max_n: int = Field(64, ge=1, description="Largest N of a request.")
    deadline: float = Field(600, gt=0, description="Seconds a request may take, and the most it may ask for.")
    max_sequences: int = Field(64, ge=1, description="Sequences an engine runs at a time.")
    kv_cache_mib: int = Field(256, ge=16, description="KV cache of each engine on CPU, in MiB.")
    gpu_memory: float = Field(
        0.4, gt=0, le=1, description="Share of GPU memory of the policy's engine, and of the reward models' together."
    )
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
    dtype: str = Field("auto", description="Weights and activations: auto, float32, bfloat16 or float16.")
