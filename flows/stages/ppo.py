"""ppo: SFT model, reward model and prompts to an aligned policy."""

from pathlib import Path

from alignment.config import PipelineConfig
from alignment.role_specs import FrozenSpec, GeneratorSpec, RoleSpec, TrainableSpec
from flows.manifest import Artifact
from flows.run_context import RunContext, StageResult, copy_tokenizer
from flows.stages.data import TRAIN_PROMPTS, read_prompts
from flows.workspace import StageWorkspace

STAGE, VERSION = "ppo", 2


def train_policy(
    run: RunContext, sft: Artifact, reward_model: Artifact, data: Artifact
) -> Artifact:
    """Train the policy; an interrupted training goes on at its newest checkpoint."""
    config = run.config.ppo
    sft_folder = sft.path("model")

    def work(workspace: StageWorkspace) -> StageResult:
        from alignment.checkpoints import Checkpoints, RolloutJournal
        from alignment.data.chat import encode_prompt
        from alignment.models.loading import load_tokenizer
        from alignment.training.ppo import train_ppo
        from alignment.training.roles import PPORoles

        tokenizer = load_tokenizer(sft_folder)
        limit = run.config.model.max_prompt_tokens
        prompts = [
            encode_prompt(tokenizer, prompt, max_prompt_tokens=limit)
            for prompt in read_prompts(data, TRAIN_PROMPTS)
        ]
        checkpoints = Checkpoints(workspace.checkpoints, stage_version=VERSION)
        if checkpoints.newest_step() is not None:
            run.progress.say(f"ppo resumes after step {checkpoints.newest_step()}")
        seed = workspace.request.seed
        specs = ppo_role_specs(run.config, sft_folder, reward_model.path("model"), seed=seed)
        with run.engines.roles(specs) as roles, run.clock.phase("model_work"):
            train_ppo(
                config,
                PPORoles(**roles),
                prompts,
                seed=seed,
                checkpoints=checkpoints,
                journal=RolloutJournal(workspace.journal),
                metrics=run.sink(STAGE, config.steps),
            )
            roles["policy"].export(workspace.output("model"))
        copy_tokenizer(sft_folder, workspace.output("model"))
        return StageResult(outputs=("model",), metrics={"steps": config.steps})

    request = run.request(
        STAGE,
        version=VERSION,
        settings={
            **config.model_dump(mode="json", exclude={"checkpoint_every_steps"}),
            "generator_precision": run.config.cluster.generator_precision,
        },
        inputs={
            "sft": sft.reference("model"),
            "reward_model": reward_model.reference("model"),
            "prompts": data.reference(TRAIN_PROMPTS),
        },
    )
    return run.stage(request, work)


def ppo_role_specs(
    config: PipelineConfig, sft_folder: Path, reward_folder: Path, *, seed: int
) -> list[RoleSpec]:
    """Who starts from what, with how many processes and GPUs; a critic if the method has one."""
    ppo, cluster = config.ppo, config.cluster
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
        ),
        FrozenSpec(
            name="reference",
            kind="language",
            model_folder=sft_folder,
            tokens_per_microbatch=ppo.tokens_per_microbatch,
            temperature=ppo.temperature,
            resources=cluster.reference,
        ),
        FrozenSpec(
            name="reward_model",
            kind="value",
            model_folder=reward_folder,
            tokens_per_microbatch=ppo.tokens_per_microbatch,
            resources=cluster.reward_model,
        ),
        GeneratorSpec(
            name="generator",
            model_folder=sft_folder,
            max_sequence_tokens=config.model.max_prompt_tokens + ppo.max_response_tokens,
            precision=cluster.generator_precision,
            resources=cluster.generator,
        ),
    ]
    if ppo.critic_optimizer is not None:
        critic = TrainableSpec(
            name="critic",
            kind="value",
            model_folder=reward_folder,
            optimizer=ppo.critic_optimizer,
            training=ppo,
            total_steps=ppo.steps * ppo.updates_per_step,
            seed=seed,
            resources=cluster.critic,
        )
        specs.insert(1, critic)
    return specs
