"""TRL's PPOTrainer in a process of its own, one step for each line that it reads.

Run by the Python of TRL's environment, which has none of our packages. Reads a JSON file named
on its command line; writes lines that begin with `@@` and hold JSON: `ready`, then one `step`
for each `go`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


def tell(event: str, **facts: Any) -> None:
    """One line to whoever started this process."""
    print("@@" + json.dumps({"event": event, **facts}), flush=True)


class StepByStep(TrainerCallback):
    """Waits for a `go` before each step, and says how long it took."""

    def __init__(self) -> None:
        self.began = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The trainer is about to take its first step."""
        tell("ready")
        self._wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is done, its weights updated."""
        tell("step", seconds=time.perf_counter() - self.began)
        self._wait()

    def _wait(self) -> None:
        if sys.stdin.readline().strip() != "go":
            sys.exit(0)
        self.began = time.perf_counter()


def value_model(folder: str, value_folder: str) -> Any:
    """The value model both sides use, as a sequence classifier with one label."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    )
    head = load_file(str(Path(value_folder) / "value_head.safetensors"))
    with torch.no_grad():
        model.score.weight.copy_(head["weight"])
    return model


def main() -> None:
    """Build the trainer and take steps until told to stop."""
    work = json.loads(Path(sys.argv[1]).read_text())
    tokenizer = AutoTokenizer.from_pretrained(work["language"], padding_side="left")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(work["pad_token_id"])
    prompts: list[list[int]] = work["prompts"]
    config = PPOConfig(
        output_dir=work["scratch"],
        per_device_train_batch_size=len(prompts),
        gradient_accumulation_steps=1,
        num_mini_batches=len(prompts) // work["minibatch"],
        num_ppo_epochs=work["epochs"],
        total_episodes=len(prompts) * 1000,
        local_rollout_forward_batch_size=len(prompts),
        response_length=work["response_tokens"],
        stop_token="eos" if work["stops"] else None,
        temperature=1.0,
        learning_rate=1e-6,
        bf16=work["precision"] == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        num_sample_generations=0,
        disable_tqdm=True,
    )
    language = [
        AutoModelForCausalLM.from_pretrained(work["language"], dtype=torch.float32)
        for _ in range(2)
    ]
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=language[0],
        ref_model=language[1],
        reward_model=value_model(work["language"], work["value"]),
        value_model=value_model(work["language"], work["value"]),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        callbacks=[StepByStep()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
