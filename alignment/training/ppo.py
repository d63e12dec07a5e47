"""Optimisation of a language model's policy against a reward, with or without a critic.

One step, in seven lines:
1. take the step's prompts and sample one response for each (repeated) prompt;
2. score each response, and each of its tokens by policy, reference and (if any) critic;
3. stop if anything is not finite, or the KL budget or the sampler's gap limit is broken;
4. build the experience: KL-shaped rewards, the method's advantages, returns, whitening;
5. update policy and critic for some epochs of minibatches;
6. publish the new weights to the generator, under the next version;
7. record the step, and checkpoint everything on its interval.

Objective of the policy: E[min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A)] with ρ = exp(new - old)
(Schulman et al. 2017, arXiv 1707.06347, eq. 7). `config.method` decides A: by a critic (GAE, arXiv
1506.02438, eq. 16) or by comparing the responses of a prompt (`ppo_advantages`); KL is in the
token rewards (Stiennon et al. 2020, arXiv 2009.01325) or a term of the loss.

Not here, on purpose: branches on method, hardware, placement or logger (tables and roles hide
them); whitening per minibatch (it makes the gradient depend on the cut).
"""

from collections.abc import Sequence

from alignment.checkpoints import Checkpoints, LoopState, RolloutJournal
from alignment.config import PPOConfig
from alignment.experience import EncodedPrompt, Sampling, TokenBatch
from alignment.seeds import derive_seed
from alignment.training.ppo_experience import build_experience, next_coefficient, prompts_of_step
from alignment.training.ppo_report import PhaseClock, step_metrics
from alignment.training.ppo_scoring import check_scored, score_rollout
from alignment.training.ppo_update import minibatches_of, optimise
from alignment.training.pretraining_mix import PretrainingMix
from alignment.training.roles import MetricSink, PPORoles


def train_ppo(
    config: PPOConfig,
    roles: PPORoles,
    prompts: Sequence[EncodedPrompt],
    *,
    seed: int,
    checkpoints: Checkpoints,
    journal: RolloutJournal,
    metrics: MetricSink,
    pretraining: TokenBatch | None = None,
) -> None:
    """Train `roles.policy` in place for `config.steps` steps, from the newest checkpoint on.

    `pretraining` holds the sequences of the pretraining mix, where the settings ask for one.

    Raises:
        NumericsError: a score, loss or gradient is not finite, or the KL budget or the sampler's
            gap limit is broken; the generator never saw the weights in question and the last
            checkpoint is untouched.
    """
    sampling = Sampling(
        max_response_tokens=config.max_response_tokens, temperature=config.temperature
    )
    mix = PretrainingMix.from_settings(config, pretraining, seed=derive_seed(seed, "pretraining"))
    state = checkpoints.restore(roles) or LoopState(0, config.kl_coefficient)
    roles.generator.load_weights(roles.policy.weights(), version=state.step)

    for step in range(state.step, config.steps):
        clock = PhaseClock()
        with clock.phase("generate"):
            step_prompts = prompts_of_step(prompts, config, seed=seed, step=step)
            seeds = [derive_seed(seed, "sample", step, i) for i in range(len(step_prompts))]
            rollout = journal.replay(step) or journal.keep(
                step, roles.generator.generate(step_prompts, sampling, seeds=seeds)
            )

        order_seed = derive_seed(seed, "order", step)
        minibatches = minibatches_of(config, len(rollout.token_ids), seed=order_seed, epoch=0)
        trains_policy = mix is None and step >= config.critic_warmup_steps
        scored = score_rollout(
            config, roles, rollout, minibatches, clock, trains_policy=trains_policy
        )
        kl_nats = check_scored(scored, config, step=step)

        coefficient, moments = state.kl_coefficient, state.score_moments.add(scored.scores.tolist())
        experience = build_experience(scored, config, kl_coefficient=coefficient, moments=moments)
        update = optimise(config, roles, experience, state, mix, seed=order_seed, clock=clock)

        with clock.phase("sync_weights"):
            roles.generator.load_weights(roles.policy.weights(), version=step + 1)

        metrics.record(
            step + 1, step_metrics(config, scored, experience, update, state, kl_nats, clock)
        )
        coefficient = next_coefficient(config, coefficient, scored, kl_nats)
        state = LoopState(step + 1, coefficient, score_moments=moments)
        if state.step % config.checkpoint_every_steps == 0 or state.step == config.steps:
            checkpoints.write(roles, state)
