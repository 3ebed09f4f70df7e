"""What the operator decides; everything else is in the bundle."""

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Settings of one server; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to bind")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes a free one")
    max_n: int = Field(64, ge=1, description="largest N of a request")
    max_sequences: int = Field(64, ge=1, description="sequences that one engine runs at a time")
    kv_cache_mib: int = Field(256, ge=16, description="MiB of KV cache of each engine, on CPU")
    gpu_memory: float = Field(0.4, gt=0, le=1, description="share of GPU memory of each engine, on GPU")
    dtype: str = Field("auto", description="weights and activations: auto, float32, bfloat16, float16")
