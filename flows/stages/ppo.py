"""ppo: SFT model, reward model and prompts to an aligned policy."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.config import PipelineConfig
from alignment.role_specs import FrozenSpec, GeneratorSpec, RoleSpec, TrainableSpec
from flows import rewarding
from flows.lineage import require_ancestor
from flows.manifest import Artifact, StageRequest
from flows.run_context import RunContext, StageResult, copy_tokenizer
from flows.stages.data import DEMONSTRATIONS, TRAIN_PROMPTS, read_demonstrations, read_prompts
from flows.workspace import StageWorkspace

if TYPE_CHECKING:
    from alignment.checkpoints import Checkpoints
    from alignment.experience import TokenBatch

STAGE, VERSION = "ppo", 8


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What the stage is made from; `reference` is None where the SFT model itself is it."""

    sft: Artifact
    reward_model: Artifact
    data: Artifact
    reference: Artifact | None


def train_policy(
    run: RunContext,
    sft: Artifact,
    reward_model: Artifact,
    data: Artifact,
    reference: Artifact | None = None,
) -> Artifact:
    """Train the policy; an interrupted training goes on at its newest checkpoint.

    `reference`, an ancestor of `sft`, is what KL is measured from; `sft` itself if absent.
    """
    if reference is not None:
        require_ancestor(run.store, policy=sft, reference=reference)
    inputs = _Inputs(sft=sft, reward_model=reward_model, data=data, reference=reference)
    return run.stage(_request(run, inputs), lambda workspace: _train(run, workspace, inputs))


def _request(run: RunContext, inputs: _Inputs) -> StageRequest:
    config = run.config.ppo
    reference, mix = inputs.reference, config.pretraining_mix
    return run.request(
        STAGE,
        version=VERSION,
        settings={
            **config.model_dump(mode="json", exclude={"checkpoint_every_steps", "exact"}),
            "generator_precision": run.config.cluster.generator_precision,
            **run.config.reward.result_settings(),
            **run.round_settings(),
        },
        inputs={
            "sft": inputs.sft.reference("model"),
            **({"reference": reference.reference("model")} if reference else {}),
            "reward_model": inputs.reward_model.reference("model"),
            "prompts": inputs.data.reference(TRAIN_PROMPTS),
            **({"demonstrations": inputs.data.reference(DEMONSTRATIONS)} if mix else {}),
            **rewarding.reward_inputs(run.config.reward),
        },
    )


def _train(run: RunContext, workspace: StageWorkspace, inputs: _Inputs) -> StageResult:
    from alignment.checkpoints import RolloutJournal
    from alignment.models.loading import load_tokenizer
    from alignment.rewards.assemble import plan_reward
    from alignment.training.overlap import OneStepAhead
    from alignment.training.ppo import train_ppo
    from alignment.training.ppo_experience import prompts_of_step
    from alignment.training.roles import PPORoles

    config, seed = run.config.ppo, workspace.request.seed
    sft_folder, own_reward = inputs.sft.path("model"), inputs.reward_model.path("model")
    tokenizer = load_tokenizer(sft_folder)
    encode = partial(_encoded_prompts, run, inputs.data, tokenizer)
    trained_on = encode(TRAIN_PROMPTS)
    prompts = [tokens for tokens, _ in trained_on]
    prompts_of_step(prompts, config, seed=seed, step=0)  # too few are refused here
    checkpoints, journal = _checkpoints(run, workspace), RolloutJournal(workspace.journal)
    plan = plan_reward(run.config, policy_folder=sft_folder, own_folder=own_reward)
    specs = ppo_role_specs(
        run.config,
        sft_folder,
        plan.model_folder,
        seed=seed,
        critic_folder=plan.critic_folder,
        reference_folder=inputs.reference.path("model") if inputs.reference else sft_folder,
        keeps_heads=plan.is_ensemble,
    )
    with run.engines.roles(specs) as roles, run.clock.phase("model_work"):
        reward = rewarding.combined_reward(run, plan, roles, tokenizer, trained_on)
        heldout = rewarding.heldout_evaluation(run, plan, roles, tokenizer, encode, seed=seed)
        after_step = checkpoints.newest_step() or 0
        generator = roles["generator"]
        if config.overlap:
            generator = OneStepAhead(generator, journal, config, prompts, seed)
        train_ppo(
            config,
            PPORoles(**{**roles, "reward_model": reward, "generator": generator}),
            prompts,
            seed=seed,
            checkpoints=checkpoints,
            journal=journal,
            metrics=rewarding.watched(run, STAGE, reward, after_step=after_step, heldout=heldout),
            pretraining=pretraining_sequences(run.config, inputs.data, tokenizer),
        )
        roles["policy"].export(workspace.output("model"))
    copy_tokenizer(sft_folder, workspace.output("model"))
    outputs = ("model", *rewarding.keep_suspicious(run, workspace))
    resumed = {"changed_on_resume": checkpoints.changes} if checkpoints.changes else {}
    return StageResult(outputs=outputs, metrics={"steps": config.steps, **resumed})


def _checkpoints(run: RunContext, workspace: StageWorkspace) -> "Checkpoints":
    """The stage's resume points, looked at before any engine starts."""
    from alignment.checkpoints import Checkpoints

    exact = run.config.ppo.exact
    checkpoints = Checkpoints(
        workspace.checkpoints, stage_version=VERSION, exact=exact, warn=run.warn
    )
    checkpoints.check()
    if checkpoints.newest_step() is not None:
        run.progress.say(f"ppo resumes after step {checkpoints.newest_step()}")
    return checkpoints


def _encoded_prompts(
    run: RunContext, data: Artifact, tokenizer: Any, name: str, count: int | None = None
) -> list[rewarding.PromptPair]:
    """The prompts of a table of the data stage, the first `count`, as tokens and as they are."""
    from alignment.data.chat import encode_prompt

    limit = run.config.model.max_prompt_tokens
    prompts = read_prompts(data, name)
    if name == TRAIN_PROMPTS:
        prompts = run.prompts_of_round(prompts)
    return [
        (encode_prompt(tokenizer, prompt, max_prompt_tokens=limit), prompt)
        for prompt in prompts[:count]
    ]


def pretraining_sequences(
    config: PipelineConfig, data: Artifact, tokenizer: Any
) -> "TokenBatch | None":
    """The demonstrations as the pretraining mix, where the settings ask for one."""
    if config.ppo.pretraining_mix is None:
        return None
    from alignment.data.batching import sft_batch
    from alignment.data.chat import encode_example
    from alignment.records import Response

    return sft_batch(
        [
            encode_example(
                tokenizer,
                demonstration.prompt,
                Response(id=demonstration.prompt.id, text=demonstration.response),
                max_prompt_tokens=config.model.max_prompt_tokens,
            )
            for demonstration in read_demonstrations(data)
        ]
    )


def ppo_role_specs(
    config: PipelineConfig,
    sft_folder: Path,
    reward_folder: Path,
    *,
    seed: int,
    critic_folder: Path | None = None,
    reference_folder: Path | None = None,
    keeps_heads: bool = False,
) -> list[RoleSpec]:
    """Who starts from what, with how many processes and GPUs; a critic if the method has one.

    The critic starts from `critic_folder`, from the reward model if that is None; the reference
    is `reference_folder`, the policy's start if that is None; `keeps_heads` lets an ensemble
    answer for each head.
    """
    ppo, cluster = config.ppo, config.cluster
    is_base = reference_folder in (None, sft_folder)
    specs: list[RoleSpec] = [
        TrainableSpec(
            name="policy",
            kind="language",
            model_folder=sft_folder,
            optimizer=ppo.optimizer,
            training=ppo,
            total_steps=ppo.policy_updates,
            seed=seed,
            resources=cluster.policy,
            temperature=ppo.temperature,
            entropy_gradient=ppo.entropy_coefficient > 0,
            ema_decay=ppo.ema_decay,
        ),
        FrozenSpec(
            name="reference",
            kind="language",
            model_folder=reference_folder or sft_folder,
            tokens_per_microbatch=ppo.tokens_per_microbatch,
            temperature=ppo.temperature,
            resources=cluster.reference,
            adapter_off="policy"
            if ppo.lora and cluster.reference_shares_policy and is_base
            else None,
        ),
        GeneratorSpec(
            name="generator",
            model_folder=sft_folder,
            max_sequence_tokens=config.model.max_prompt_tokens + ppo.max_response_tokens,
            precision=cluster.generator_precision,
            resources=cluster.generator,
        ),
    ]
    policy, reference, generator = specs
    critic = _critic_specs(config, critic_folder or reward_folder, seed=seed)
    reward_model = _reward_specs(config, reward_folder, keeps_heads=keeps_heads)
    return [policy, *critic, reference, *reward_model, generator]


def _critic_specs(config: PipelineConfig, folder: Path, *, seed: int) -> list[RoleSpec]:
    """The critic, of a method that has one."""
    ppo = config.ppo
    if ppo.critic_optimizer is None:
        return []
    return [
        TrainableSpec(
            name="critic",
            kind="value",
            model_folder=folder,
            optimizer=ppo.critic_optimizer,
            training=ppo,
            total_steps=ppo.steps * ppo.updates_per_step,
            seed=seed,
            resources=config.cluster.critic,
        )
    ]


def _reward_specs(config: PipelineConfig, folder: Path, *, keeps_heads: bool) -> list[RoleSpec]:
    """The reward model, where it pays or judges."""
    if not config.ppo_asks_reward_model:
        return []
    return [
        FrozenSpec(
            name="reward_model",
            kind="value",
            model_folder=folder,
            tokens_per_microbatch=config.ppo.tokens_per_microbatch,
            resources=config.cluster.reward_model,
            keeps_heads=keeps_heads,
        )
    ]
