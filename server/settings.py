"""What the operator decides; everything else is in the bundle. Each field is an option of ``infalign serve``."""

from pathlib import Path

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
    dtype: str = Field("auto", description="Weights and activations: auto, float32, bfloat16 or float16.")
    keys: Path | None = Field(
        None, description="File of API keys (see `infalign key`); without one only this machine is served."
    )
    audit_log: Path | None = Field(None, description="File that worst-of-n calls are noted in; stderr if left out.")
    max_body_kib: int = Field(1024, ge=1, description="Largest request body, in KiB.")
