"""Sizes that follow from the settings, so that nobody has to multiply by hand."""

from alignment.config import PipelineConfig, RoleResources


def derived_sizes(config: PipelineConfig) -> list[tuple[str, str]]:
    """Pairs of a size's name and its value with the arithmetic behind it."""
    ppo, candidates = config.ppo, config.candidates
    minibatches = ppo.updates_per_step // ppo.epochs
    ranked = candidates.responses_per_prompt + candidates.probes_per_prompt
    sizes = [
        (
            "PPO sequences a step",
            f"{ppo.sequences_per_step} = {ppo.prompts_per_step} prompts x "
            f"{ppo.responses_per_prompt} responses",
        ),
        (
            "PPO optimiser steps",
            f"{ppo.steps * ppo.epochs * minibatches} = {ppo.steps} steps x {ppo.epochs} epochs x "
            f"{minibatches} minibatches",
        ),
        (
            "PPO responses in all",
            f"{ppo.steps * ppo.sequences_per_step} = {ppo.steps} steps x "
            f"{ppo.sequences_per_step} sequences",
        ),
    ]
    if config.preferences.source != "imported":
        sizes.append(
            (
                "responses ranked at once",
                f"{ranked} = {candidates.responses_per_prompt} sampled + "
                f"{candidates.probes_per_prompt} probes",
            )
        )
        if candidates.prompts is not None:
            sizes.append(
                (
                    "rankings wanted",
                    f"{candidates.prompts * config.preferences.rankings_per_prompt} = "
                    f"{candidates.prompts} prompts x {config.preferences.rankings_per_prompt}",
                )
            )
    sizes += _lengths(config)
    sizes.append(_processes(config))
    return sizes


def _lengths(config: PipelineConfig) -> list[tuple[str, str]]:
    prompt = config.model.max_prompt_tokens
    stages = {
        "SFT": config.data.max_response_tokens,
        "PPO": config.ppo.max_response_tokens,
    }
    return [
        (f"longest {name} sequence", f"{prompt + response} tokens = {prompt} + {response}")
        for name, response in stages.items()
    ]


def _processes(config: PipelineConfig) -> tuple[str, str]:
    cluster = config.cluster
    if cluster.backend == "local":
        return "processes in PPO", "this one: `cluster.backend` is local"
    roles: list[RoleResources] = [
        cluster.policy,
        cluster.reference,
        cluster.generator,
    ]
    if config.ppo_asks_reward_model:
        roles.append(cluster.reward_model)
    if config.ppo.has_critic:
        roles.append(cluster.critic)
    processes = sum(role.ranks for role in roles)
    gpus = sum(role.ranks * role.gpus_per_rank for role in roles)
    return "processes in PPO", f"{processes} for {len(roles)} roles, {gpus} GPUs"
