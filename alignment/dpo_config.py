"""Settings of direct preference optimisation, the baseline that needs no reward model."""

from alignment.settings import Count, OptimizerConfig, Positive, TrainingConfig


class DPOConfig(TrainingConfig):
    """A policy from comparisons alone; Rafailov et al. 2023, arXiv 2305.18290."""

    epochs: Count = 1
    groups_per_minibatch: Count = 8
    """Prompts a step; all comparisons among a prompt's responses stay together."""
    beta: Positive = 0.1
    """Weight of the KL to the reference in the objective that DPO solves."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-6)
