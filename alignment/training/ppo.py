"""Proximal policy optimisation of a language model against a reward model.

One step, in seven lines:
1. take the step's prompts and sample one response for each (repeated) prompt;
2. score each response, and each of its tokens by policy, reference and critic;
3. stop if anything is not finite or the KL budget is broken;
4. build the experience: KL-shaped rewards, advantages, returns, whitening;
5. update policy and critic for some epochs of minibatches;
6. publish the new weights to the generator, under the next version;
7. record the step, and checkpoint everything on its interval.

Objective of the policy: E[min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A)] with ρ = exp(new - old)
(Schulman et al. 2017, arXiv 1707.06347, eq. 7); advantages by GAE (arXiv 1506.02438, eq. 16);
token reward = -β KL, plus the score at the last response token (Stiennon et al. 2020,
arXiv 2009.01325). Old log-probabilities are recomputed by the trainer, never the sampler's.

Not here, on purpose: branches on hardware, placement or logger (roles hide them); whitening per
minibatch (it makes the gradient depend on the cut); the sampler's log-probabilities in the ratio.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from alignment.checkpoints import Checkpoints, LoopState, RolloutJournal
from alignment.config import PPOConfig
from alignment.data.batching import minibatch_order
from alignment.experience import EncodedPrompt, Experience, Sampling, select_rows
from alignment.objectives.kl import adaptive_kl_coefficient
from alignment.seeds import derive_seed
from alignment.training.guards import require_finite
from alignment.training.ppo_experience import build_experience, check_scored, score_rollout
from alignment.training.ppo_objective import critic_loss, minibatch_denominator, policy_loss
from alignment.training.ppo_report import PhaseClock, UpdateLog, step_metrics
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
) -> None:
    """Train `roles.policy` in place for `config.steps` steps, from the newest checkpoint on.

    Raises:
        NumericsError: a score, loss or gradient is not finite, or the KL budget is broken; the
            generator never saw the weights in question and the last checkpoint is untouched.
    """
    sampling = Sampling(
        max_response_tokens=config.max_response_tokens, temperature=config.temperature
    )
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

        scored = score_rollout(roles, rollout, clock)
        kl_nats = check_scored(scored, budget_nats=config.kl_budget_nats, step=step)

        experience = build_experience(scored, config, kl_coefficient=state.kl_coefficient)
        update = optimise(
            config, roles, experience, seed=derive_seed(seed, "order", step), clock=clock
        )

        with clock.phase("sync_weights"):
            roles.generator.load_weights(roles.policy.weights(), version=step + 1)

        metrics.record(step + 1, step_metrics(scored, experience, update, state, kl_nats, clock))
        state = replace(
            state, step=step + 1, kl_coefficient=_next_coefficient(config, state, kl_nats)
        )
        if state.step % config.checkpoint_every_steps == 0 or state.step == config.steps:
            checkpoints.write(roles, state)


def prompts_of_step(
    prompts: Sequence[EncodedPrompt], config: PPOConfig, *, seed: int, step: int
) -> list[EncodedPrompt]:
    """The step's prompts, each repeated for its responses; a pure function of seed and step.

    Prompts are visited in a shuffled order, reshuffled when all have been seen.
    """
    wanted = range(step * config.prompts_per_step, (step + 1) * config.prompts_per_step)
    chosen = []
    for position in wanted:
        epoch, place = divmod(position, len(prompts))
        (order,) = minibatch_order(
            len(prompts), size=len(prompts), seed=derive_seed(seed, "prompts"), epoch=epoch
        )
        chosen.append(prompts[order[place]])
    return [prompt for prompt in chosen for _ in range(config.responses_per_prompt)]


def optimise(
    config: PPOConfig, roles: PPORoles, experience: Experience, *, seed: int, clock: PhaseClock
) -> UpdateLog:
    """Update policy and critic for `config.epochs` epochs of shuffled minibatches."""
    log = UpdateLog()
    objective = partial(
        policy_loss,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        aggregation=config.aggregation,
    )
    value_objective = partial(critic_loss, clip=config.value_clip)
    for epoch in range(config.epochs):
        order = minibatch_order(
            len(experience.token_ids), size=config.sequences_per_minibatch, seed=seed, epoch=epoch
        )
        for rows in order:
            minibatch = select_rows(experience, rows)
            with clock.phase("update_policy"):
                denominator = minibatch_denominator(minibatch, config.aggregation)
                policy = roles.policy.forward_backward(
                    minibatch, objective, denominator=denominator
                )
                require_finite("PPO policy loss", policy["loss"], step=epoch)
                policy_report = roles.policy.step()
                require_finite("PPO gradient norm", policy_report.gradient_norm, step=epoch)
            with clock.phase("update_critic"):
                tokens = minibatch_denominator(minibatch, "token-mean")
                critic = roles.critic.forward_backward(
                    minibatch, value_objective, denominator=tokens
                )
                require_finite("PPO value loss", critic["loss"], step=epoch)
                critic_report = roles.critic.step()
            log.add(policy, policy_report, critic, critic_report)
    return log


def _next_coefficient(config: PPOConfig, state: LoopState, kl_nats: float) -> float:
    if config.adaptive_kl is None:
        return state.kl_coefficient
    return adaptive_kl_coefficient(
        state.kl_coefficient,
        kl_nats=kl_nats,
        target_nats=config.adaptive_kl.target_nats,
        horizon_sequences=config.adaptive_kl.horizon_sequences,
        num_sequences=config.sequences_per_step,
    )
