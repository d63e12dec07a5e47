"""What every configuration model is made of: strict frozen settings, bounded numbers.

Loads neither torch nor ray.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Precision = Literal["float32", "bfloat16"]


class Settings(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class OptimizerConfig(Settings):
    """AdamW with warm-up and linear decay."""

    learning_rate: NonNegative
    final_learning_rate_fraction: Fraction = 0.0
    """The rate decays linearly to this share of its peak at the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: NonNegative = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    epsilon: Positive = 1e-8
    max_gradient_norm: Positive = 1.0


class LoRAConfig(Settings):
    """Low-rank adapters on a frozen base (Hu et al. 2021, arXiv 2106.09685)."""

    r: Count = 16
    """Rank of the update of each adapted weight."""
    alpha: Positive = 32.0
    """The update is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs dropped while gradients are computed, nowhere else. Above 0,
    PPO's first ratio of a step is no longer exactly 1."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the linear layers that get an adapter; all of each block if absent."""


class TrainingConfig(Settings):
    """What every trained role needs to know about the machine."""

    precision: Precision = "float32"
    """Arithmetic of forward and backward; weights and optimiser state stay float32."""
    tokens_per_microbatch: Count = 2048
    """Upper bound of padded tokens in one forward pass; does not change the gradient."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage; 0 is fastest on a single process."""
    gradient_checkpointing: bool = False
    lora: LoRAConfig | None = None
    """Train low-rank adapters instead of all weights; a value model's head is trained whole."""
