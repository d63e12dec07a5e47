"""The two modules that are trained: a language model and a value model.

Both take the [B, T] grid of `alignment.experience` and answer on it. The shift between a
causal model's outputs (position t-1 speaks about token t) and the grid is made by
`alignment.objectives.logprobs`, and nowhere else.

Batches are right-padded, so under causal attention no real token ever sees padding: no
attention mask is built, which keeps the fastest attention kernel. On a CPU, padding is not even
computed (`alignment.models.packing`).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignment.models.lora import (
    NO_ADAPTERS,
    Adapters,
    PublishedWeight,
    published_weights,
    save_merged,
)
from alignment.models.packing import hidden_states
from alignment.objectives.logprobs import (
    chunk_count,
    positions_before,
    scatter_to_grid,
    token_logprobs,
)
from alignment.training.roles import LogprobOutputs, ValueOutputs

VALUE_HEAD_WEIGHTS = "value_head.safetensors"
VALUE_HEAD_SETTINGS = "value_head.json"

HeadNumbers = float | Sequence[float]
"""A number for the only head, or one for each head of an ensemble."""


class LanguageModel(nn.Module):
    """A causal language model that says how likely given response tokens are.

    Logits are divided by `temperature`, so that its numbers are comparable with a sampler's.
    `entropy_gradient` lets a loss differentiate the entropy too.
    """

    def __init__(
        self,
        causal_lm: Any,
        *,
        temperature: float = 1.0,
        chunk_tokens: int = 512,
        entropy_gradient: bool = False,
        adapters: Adapters = NO_ADAPTERS,
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.adapters = adapters
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens
        self.entropy_gradient = entropy_gradient
        self.most_chunks: Callable[[int], int] = int
        """Of chunk counts, one a rank, the largest: of one process, its own. See `chunk_count`."""

    @property
    def backbone(self) -> Any:
        """The transformer without its head."""
        return self.causal_lm.get_decoder()

    def forward(self, token_ids: Tensor, response_mask: Tensor) -> LogprobOutputs:
        """Log-probability and entropy of each response token, float32 [B, T], 0 elsewhere."""
        rows, columns = positions_before(response_mask)
        needed = last_position(response_mask)  # the last token predicts nothing
        hidden = hidden_states(self.backbone, token_ids, needed)
        logprobs, entropy = token_logprobs(
            hidden.states[hidden.starts[rows] + columns],
            self.causal_lm.get_output_embeddings(),
            token_ids[response_mask],
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
            min_chunks=self.most_chunks(chunk_count(len(rows), self.chunk_tokens)),
            with_entropy_gradient=self.entropy_gradient,
        )
        return LogprobOutputs(
            new_logprobs=scatter_to_grid(logprobs, response_mask),
            entropy=scatter_to_grid(entropy, response_mask),
        )

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole weights under their published names, adapters merged."""
        for weight in self.published_weights():
            yield weight.name, weight.value()

    def published_weights(self) -> list[PublishedWeight]:
        """What others need to know of the weights; a head tied to the embeddings is left out."""
        tied = bool(getattr(self.causal_lm.config, "tie_word_embeddings", False))
        weights = published_weights(self.causal_lm, self.adapters)
        return [weight for weight in weights if not (tied and weight.name == "lm_head.weight")]

    def save(self, folder: Path) -> None:
        """Write weights (adapters merged) and configuration; the caller adds the tokenizer."""
        save_merged(self.causal_lm, self.adapters, folder)


class ValueModel(nn.Module):
    """A transformer with a scalar head: reward model (score of the last token) and critic.

    Outputs are `(raw - mean) * scale`. `mean` and `scale` are fixed numbers that training does
    not touch: the reward model stage sets them so that the SFT policy scores 0 with spread 1.
    With several heads it is an ensemble on one trunk: scores are [B, heads], values the heads'
    mean, and `mean` and `scale` one number a head.
    """

    def __init__(
        self,
        backbone: Any,
        head: nn.Linear,
        *,
        mean: HeadNumbers,
        scale: HeadNumbers,
        adapters: Adapters = NO_ADAPTERS,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapters = adapters
        self.head = head
        self.mean = mean
        self.scale = scale

    def forward(
        self, token_ids: Tensor, attention_mask: Tensor, response_mask: Tensor
    ) -> ValueOutputs:
        """Value before each response token [B, T] and score at the last token [B], float32."""
        lengths = attention_mask.sum(1)
        hidden = hidden_states(self.backbone, token_ids, lengths)
        raw = self.head(hidden.states).float()
        outputs = (raw - raw.new_tensor(self.mean)) * raw.new_tensor(self.scale)
        rows, columns = positions_before(response_mask)
        before = outputs.mean(-1)[hidden.starts[rows] + columns]
        scores = outputs[hidden.starts + lengths - 1]
        return ValueOutputs(
            new_values=scatter_to_grid(before, response_mask),
            scores=scores if scores.shape[1] > 1 else scores.squeeze(1),
        )

    def save(self, folder: Path) -> None:
        """Write backbone (adapters merged), head and normalisation: see `load_value_model`."""
        save_merged(self.backbone, self.adapters, folder)
        head = {name: tensor.contiguous() for name, tensor in self.head.state_dict().items()}
        save_file(head, folder / VALUE_HEAD_WEIGHTS)
        write_normalisation(folder, mean=self.mean, scale=self.scale)


def last_position(mask: Tensor) -> Tensor:
    """Column of the last True of each row, 0 where there is none, int64 [B]."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).amax(1)


def write_normalisation(folder: Path, *, mean: HeadNumbers, scale: HeadNumbers) -> None:
    """Set what a saved value model subtracts from and multiplies its raw outputs with."""
    text = json.dumps({"mean": mean, "scale": scale}, indent=1)
    (folder / VALUE_HEAD_SETTINGS).write_text(text + "\n", encoding="utf-8")


def new_value_head(hidden_size: int, *, seed: int, heads: int = 1) -> nn.Linear:
    """Scalar heads drawn from N(0, 1/(d+1)), bias 0 (Huang et al. 2024, detail on head init)."""
    head = nn.Linear(hidden_size, heads)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, (hidden_size + 1) ** -0.5, generator=generator)
        head.bias.zero_()
    return head


def read_value_head(folder: Path) -> tuple[nn.Linear, HeadNumbers, HeadNumbers]:
    """Head, mean and scale of a saved value model; with several heads, one number each."""
    state = load_file(folder / VALUE_HEAD_WEIGHTS)
    heads, hidden_size = state["weight"].shape
    head = nn.Linear(hidden_size, heads)
    head.load_state_dict(state)
    settings = json.loads((folder / VALUE_HEAD_SETTINGS).read_text(encoding="utf-8"))
    return head, settings["mean"], settings["scale"]


def saved_heads(folder: Path) -> int:
    """How many heads the value model saved in `folder` has; 0 if it holds none."""
    path = folder / VALUE_HEAD_WEIGHTS
    return len(load_file(path)["weight"]) if path.exists() else 0


def mean_head(head: nn.Linear, mean: HeadNumbers, scale: HeadNumbers) -> nn.Linear:
    """The one head whose output is the mean of several heads' normalised outputs."""
    shift = torch.tensor(mean, dtype=torch.float64).expand(head.out_features)
    factor = torch.tensor(scale, dtype=torch.float64).expand(head.out_features)
    merged = nn.Linear(head.in_features, 1)
    with torch.no_grad():
        merged.weight.copy_((head.weight.double() * factor[:, None]).mean(0, keepdim=True))
        merged.bias.copy_(((head.bias.double() - shift) * factor).mean(0, keepdim=True))
    return merged
