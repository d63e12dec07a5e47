"""The two modules that are trained: a language model and a value model.

Both take the [B, T] grid of `alignment.experience` and answer on it. The shift between a
causal model's outputs (position t-1 speaks about token t) and the grid is made by
`alignment.objectives.logprobs`, and nowhere else.

Batches are right-padded, so under causal attention no real token ever sees padding: no
attention mask is built, which keeps the fastest attention kernel.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignment.objectives.logprobs import gather_before, scatter_to_grid, token_logprobs
from alignment.training.roles import LogprobOutputs, ValueOutputs

VALUE_HEAD_WEIGHTS = "value_head.safetensors"
VALUE_HEAD_SETTINGS = "value_head.json"


class LanguageModel(nn.Module):
    """A causal language model that says how likely given response tokens are.

    Logits are divided by `temperature`, so that its numbers are comparable with a sampler's.
    """

    def __init__(
        self, causal_lm: Any, *, temperature: float = 1.0, chunk_tokens: int = 512
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens

    def forward(self, token_ids: Tensor, response_mask: Tensor) -> LogprobOutputs:
        """Log-probability and entropy of each response token, float32 [B, T], 0 elsewhere."""
        hidden = self.causal_lm.get_decoder()(input_ids=token_ids, use_cache=False)[0]
        logprobs, entropy = token_logprobs(
            gather_before(hidden, response_mask),
            self.causal_lm.get_output_embeddings(),
            token_ids[response_mask],
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
        )
        return LogprobOutputs(
            new_logprobs=scatter_to_grid(logprobs, response_mask),
            entropy=scatter_to_grid(entropy, response_mask),
        )

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Weights under their published names; a head tied to the embeddings is left out."""
        tied = bool(getattr(self.causal_lm.config, "tie_word_embeddings", False))
        for name, weight in self.causal_lm.named_parameters():
            if not (tied and name == "lm_head.weight"):
                yield name, weight.detach()

    def save(self, folder: Path) -> None:
        """Write weights, configuration and nothing else; the caller adds the tokenizer."""
        self.causal_lm.save_pretrained(folder)


class ValueModel(nn.Module):
    """A transformer with a scalar head: reward model (score of the last token) and critic.

    Outputs are `(raw - mean) * scale`. `mean` and `scale` are fixed numbers that training does
    not touch: the reward model stage sets them so that the SFT policy scores 0 with spread 1.
    """

    def __init__(self, backbone: Any, head: nn.Linear, *, mean: float, scale: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.mean = mean
        self.scale = scale

    def forward(
        self, token_ids: Tensor, attention_mask: Tensor, response_mask: Tensor
    ) -> ValueOutputs:
        """Value before each response token [B, T] and score at the last token [B], float32."""
        hidden = self.backbone(input_ids=token_ids, use_cache=False)[0]
        raw = self.head(hidden).squeeze(-1).float()
        outputs = (raw - self.mean) * self.scale
        before = gather_before(outputs, response_mask)
        last = attention_mask.sum(1, keepdim=True) - 1
        return ValueOutputs(
            new_values=scatter_to_grid(before, response_mask),
            scores=outputs.gather(1, last).squeeze(1),
        )

    def save(self, folder: Path) -> None:
        """Write backbone, head and normalisation as a folder `load_value_model` reads."""
        self.backbone.save_pretrained(folder)
        head = {name: tensor.contiguous() for name, tensor in self.head.state_dict().items()}
        save_file(head, folder / VALUE_HEAD_WEIGHTS)
        write_normalisation(folder, mean=self.mean, scale=self.scale)


def write_normalisation(folder: Path, *, mean: float, scale: float) -> None:
    """Set what a saved value model subtracts from and multiplies its raw outputs with."""
    text = json.dumps({"mean": mean, "scale": scale}, indent=1)
    (folder / VALUE_HEAD_SETTINGS).write_text(text + "\n", encoding="utf-8")


def new_value_head(hidden_size: int, *, seed: int) -> nn.Linear:
    """Scalar head drawn from N(0, 1/(d+1)), bias 0 (Huang et al. 2024, detail on head init)."""
    head = nn.Linear(hidden_size, 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, (hidden_size + 1) ** -0.5, generator=generator)
        head.bias.zero_()
    return head


def read_value_head(folder: Path, hidden_size: int) -> tuple[nn.Linear, float, float]:
    """Head, mean and scale of a saved value model."""
    head = nn.Linear(hidden_size, 1)
    head.load_state_dict(load_file(folder / VALUE_HEAD_WEIGHTS))
    settings = json.loads((folder / VALUE_HEAD_SETTINGS).read_text(encoding="utf-8"))
    return head, float(settings["mean"]), float(settings["scale"])
