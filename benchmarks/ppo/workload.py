"""What both sides work on: prompts, the four models, and the variants of the comparison."""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignment.config import ModelConfig, OptimizerConfig, PPOConfig, Precision
from alignment.data.chat import encode_prompt
from alignment.data.starter import load_starter
from alignment.errors import DataError
from alignment.experience import EncodedPrompt
from alignment.models.base_model import prepare_base_model
from alignment.models.loading import load_tokenizer, load_value_model
from alignment.records import Message, Prompt

BATCH, MINIBATCH = 32, 8
KEPT_SHARE = MINIBATCH / BATCH
"""A minibatch is one microbatch, so that the first is updated from the pass that scored it."""
MAX_PROMPT_TOKENS, RESPONSE_TOKENS = 64, 64
REWARD_HEAD_SEED = 0


@dataclass(frozen=True, slots=True)
class Variant:
    """One comparison: `forced` makes every response 64 tokens on both sides.

    `goal` is the least time of TRL over ours; None where only the prediction sets one.
    """

    name: str
    epochs: int
    forced: bool
    precision: Precision = "float32"
    goal: float | None = None
    fine_tuned: bool = False
    """Start both sides from the model fine-tuned on the starter demonstrations, which ends."""
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    """Ours; TRL's are always those of its generation."""


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("forced-1", epochs=1, forced=True, goal=1.6),
        Variant("forced-4", epochs=4, forced=True, goal=1.5),
        Variant("sampler-1", epochs=1, forced=True, goal=1.6, old_logprobs="sampler"),
        Variant("sampler-4", epochs=4, forced=True, goal=1.5, old_logprobs="sampler"),
        Variant("eos-1", epochs=1, forced=False),
        Variant("eos-short-1", epochs=1, forced=False, fine_tuned=True),
        Variant("bf16-1", epochs=1, forced=True, precision="bfloat16"),
    )
}


def ppo_config(variant: Variant, *, steps: int, sequences: int = BATCH) -> PPOConfig:
    """Our settings of a variant."""
    return PPOConfig(
        steps=steps,
        prompts_per_step=sequences,
        sequences_per_minibatch=MINIBATCH,
        epochs=variant.epochs,
        max_response_tokens=RESPONSE_TOKENS,
        precision=variant.precision,
        tokens_per_microbatch=2048,
        kl_budget_nats=1e6,
        old_logprobs=variant.old_logprobs,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        critic_optimizer=OptimizerConfig(learning_rate=1e-6),
    )


def prepare_models(folder: Path, *, fine_tuned: bool) -> tuple[Path, Path]:
    """Language model and value model folders, made once and kept below `folder`."""
    base = folder / "base"
    if not (base / "config.json").exists():
        prepare_base_model(ModelConfig(), base, seed=0)
    language = base
    if fine_tuned:
        language = folder / "fine-tuned"
        if not (language / "config.json").exists():
            _fine_tune(base, language)
    value = folder / f"{language.name}-value"
    if not (value / "config.json").exists():
        load_value_model(language, seed=REWARD_HEAD_SEED).save(value)
    return language, value


def _fine_tune(base: Path, folder: Path) -> None:
    """The quickstart's fine-tuning, in this process."""
    import shutil

    from alignment.config import SFTConfig
    from alignment.data.batching import sft_batch
    from alignment.data.chat import encode_example
    from alignment.records import Response
    from alignment.role_specs import TrainableSpec
    from alignment.roles_local import start_roles
    from alignment.training.sft import num_sft_steps, train_sft

    config, tokenizer = SFTConfig(tokens_per_microbatch=1024), load_tokenizer(base)
    demonstrations = [d for d in load_starter().demonstrations if d.prompt.language == "en"][:96]
    examples = [
        encode_example(
            tokenizer,
            demonstration.prompt,
            Response(id=demonstration.prompt.id, text=demonstration.response),
            max_prompt_tokens=MAX_PROMPT_TOKENS,
        )
        for demonstration in demonstrations
    ]
    spec = TrainableSpec(
        name="sft",
        kind="language",
        model_folder=base,
        optimizer=config.optimizer,
        training=config,
        total_steps=num_sft_steps(config, len(examples)),
        seed=0,
    )
    model = start_roles([spec])["sft"]
    train_sft(config, model, sft_batch(examples), seed=0, metrics=_Forgetful())
    model.export(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).exists():
            shutil.copy(base / name, folder / name)


class _Forgetful:
    def record(self, step: int, metrics: Any) -> None:
        """Nobody asks for these numbers."""


def bench_prompts(language: Path, *, seed: int = 0) -> list[EncodedPrompt]:
    """A batch of prompts, drawn once from the real ones that fit: every step works on these."""
    tokenizer = load_tokenizer(language)
    fitting = []
    for prompt in _all_prompts():
        try:
            fitting.append(encode_prompt(tokenizer, prompt, max_prompt_tokens=MAX_PROMPT_TOKENS))
        except DataError:  # too long
            continue
    return random.Random(seed).sample(fitting, BATCH)


def _all_prompts() -> list[Prompt]:
    named = os.environ.get("ALIGNFLOW_TEST_DATA")
    if not named:
        return list(load_starter().train_prompts)
    folder = Path(named) / "prompts"
    lines = {
        name: [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines() if line]
        for name in (
            "oasst_prompt_lottery_a.jsonl",
            "vicuna_questions_a.jsonl",
            "mt_bench_questions_a.jsonl",
        )
    }
    return [
        Prompt(
            id=f"{name}:{index}",
            messages=(
                Message(
                    role="user", content=value if isinstance(value, str) else value["turns"][0]
                ),
            ),
        )
        for name, values in lines.items()
        for index, value in enumerate(values)
    ]
