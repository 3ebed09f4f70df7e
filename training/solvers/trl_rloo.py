"""TRL's RLOO trainer, imported without vLLM.

Where vLLM is installed, TRL imports it beside the trainer, whether or not the trainer is to draw by it. That takes four
seconds of every run, and vLLM changes torch's settings of the process. The solver draws by itself.
"""

from trl import import_utils

import_utils.is_vllm_available = lambda *_, **__: False

from trl import RLOOConfig, RLOOTrainer  # noqa: E402  (it asks the line above)

__all__ = ["RLOOConfig", "RLOOTrainer"]
