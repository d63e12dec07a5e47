"""sft: base model and demonstrations to SFT model."""

from alignment.role_specs import TrainableSpec
from flows.manifest import Artifact
from flows.run_context import RunContext, StageResult, copy_tokenizer
from flows.stages.data import DEMONSTRATIONS, read_demonstrations
from flows.workspace import StageWorkspace

STAGE, VERSION = "sft", 6


def train_sft(run: RunContext, base_model: Artifact, data: Artifact) -> Artifact:
    """Fine-tune the base model on the demonstrations."""
    config = run.config.sft
    base_folder = base_model.path("model")

    def work(workspace: StageWorkspace) -> StageResult:
        from alignment.data.batching import sft_batch
        from alignment.data.chat import encode_example
        from alignment.models.loading import load_tokenizer
        from alignment.records import Response
        from alignment.training import sft

        tokenizer = load_tokenizer(base_folder)
        examples = [
            encode_example(
                tokenizer,
                demonstration.prompt,
                Response(id=demonstration.prompt.id, text=demonstration.response),
                max_prompt_tokens=run.config.model.max_prompt_tokens,
            )
            for demonstration in read_demonstrations(data)
        ]
        total_steps = sft.num_sft_steps(config, len(examples))
        spec = TrainableSpec(
            name="sft",
            kind="language",
            model_folder=base_folder,
            optimizer=config.optimizer,
            training=config,
            total_steps=total_steps,
            seed=workspace.request.seed,
            resources=run.config.cluster.policy,
        )
        with run.engines.roles([spec]) as roles, run.clock.phase("model_work"):
            sft.train_sft(
                config,
                roles["sft"],
                sft_batch(examples),
                seed=workspace.request.seed,
                metrics=run.sink(STAGE, total_steps),
            )
            roles["sft"].export(workspace.output("model"))
        copy_tokenizer(base_folder, workspace.output("model"))
        return StageResult(
            outputs=("model",), metrics={"demonstrations": len(examples), "steps": total_steps}
        )

    request = run.request(
        STAGE,
        version=VERSION,
        settings=config.model_dump(mode="json"),
        inputs={
            "base_model": base_model.reference("model"),
            "demonstrations": data.reference(DEMONSTRATIONS),
        },
    )
    return run.stage(request, work)
