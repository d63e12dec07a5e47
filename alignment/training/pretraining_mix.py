"""The pretraining mix: language-modelling gradient added to each update of the policy.

`loss = PPO loss + coefficient * mean cross-entropy of the response tokens` of some sequences
that the policy should not forget. Source: Ouyang et al. 2022, arXiv 2203.02155, eq. 2. Both
gradients go into the same optimiser step. Log-probabilities are those at the policy's own
sampling temperature.
"""

from dataclasses import dataclass

from alignment.config import PPOConfig
from alignment.data.batching import minibatch_order
from alignment.errors import ConfigError
from alignment.experience import TokenBatch, select_rows
from alignment.objectives.sft_losses import sft_loss
from alignment.training.guards import require_finite
from alignment.training.roles import LogprobOutputs, LossSums, Policy


@dataclass(frozen=True, kw_only=True)
class PretrainingMix:
    """Sequences to keep in mind, how many an update sees, and what they weigh."""

    sequences: TokenBatch
    coefficient: float
    sequences_per_minibatch: int
    updates_per_step: int
    seed: int

    @classmethod
    def from_settings(
        cls, config: PPOConfig, sequences: TokenBatch | None, *, seed: int
    ) -> "PretrainingMix | None":
        """None where the settings ask for none.

        Raises:
            ConfigError: sequences are asked for and not given, or given and not asked for.
        """
        settings = config.pretraining_mix
        if (settings is None) != (sequences is None):
            have = (
                "none were given" if sequences is None else "is not set, but sequences were given"
            )
            raise ConfigError(f"`ppo.pretraining_mix`: {have}; give both or neither")
        if settings is None or sequences is None:
            return None
        return cls(
            sequences=sequences,
            coefficient=settings.coefficient,
            sequences_per_minibatch=settings.sequences_per_minibatch,
            updates_per_step=config.updates_per_step,
            seed=seed,
        )

    def add_gradient(self, policy: Policy, step: int, update: int) -> float:
        """Add the term's gradient before update number `update` of a step; its loss in nats."""
        batch = select_rows(self.sequences, self.rows(step * self.updates_per_step + update))
        tokens = float(batch.response_mask.sum())
        sums = policy.forward_backward(
            batch, pretraining_loss, denominator=tokens / self.coefficient
        )
        require_finite("pretraining loss", sums["loss"], step=step)
        return sums["loss"] / self.coefficient

    def rows(self, update: int) -> list[int]:
        """Which sequences update number `update` of the training sees; all before any repeats."""
        count, size = len(self.sequences.token_ids), self.sequences_per_minibatch
        rows = []
        for position in range(update * size, (update + 1) * size):
            epoch, place = divmod(position, count)
            (order,) = minibatch_order(count, size=count, seed=self.seed, epoch=epoch)
            rows.append(order[place])
        return rows


def pretraining_loss(outputs: LogprobOutputs, batch: TokenBatch) -> LossSums:
    """Cross-entropy summed over the response tokens of a microbatch."""
    return LossSums(loss=sft_loss(outputs.new_logprobs, batch.response_mask).sum(), metrics={})
