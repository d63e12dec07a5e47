"""reward_model: comparisons to a reward model whose scores mean something, and a gate."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.config import PipelineConfig
from alignment.errors import NumericsError
from alignment.records import PreferenceGroup
from alignment.role_specs import TrainableSpec
from alignment.seeds import derive_seed
from flows.manifest import Artifact
from flows.run_context import RunContext, StageResult, copy_tokenizer
from flows.run_record import name_in_round
from flows.stages.data import PREFERENCES, read_groups
from flows.workspace import StageWorkspace

if TYPE_CHECKING:
    from torch import Tensor

    from alignment.experience import PreferenceBatch
    from alignment.models.modules import HeadNumbers
    from alignment.training.roles import MetricSink

STAGE, VERSION = "reward_model", 6
FOLD_PAIRS = "fold_pairs.json"


def train_reward_model(
    run: RunContext, start: Artifact, preferences: Sequence[Artifact]
) -> Artifact:
    """Train on all comparisons, normalise the scores, and cross-validate where configured.

    `start` is the SFT model, or the reward model of the round before, whose head goes on;
    `preferences` has one artifact a round.

    Raises:
        NumericsError: the accuracy is below `reward_model.minimum_accuracy`; PPO would only
            learn the reward model's noise.
    """
    config = run.config.reward_model

    def work(workspace: StageWorkspace) -> StageResult:
        groups = [group for artifact in preferences for group in read_groups(artifact)]
        model_folder = start.path("model")
        seed = workspace.request.seed
        folds = _fold_scores(run, groups, model_folder, seed)
        folder = workspace.output("model")
        scores, batch = _train(run, groups, groups, model_folder, seed, export_to=folder)
        figures = pair_figures(mean_over_heads(scores), batch)
        if figures["train_accuracy"] < config.minimum_accuracy:
            raise NumericsError(
                f"the reward model orders {figures['train_accuracy']:.3f} of the training pairs as "
                f"the labelers did, below `reward_model.minimum_accuracy` {config.minimum_accuracy}"
                "; train longer, label more, or lower the gate"
            )
        means, spreads = baseline_of(scores, groups)
        normalise(folder, means, spreads)
        copy_tokenizer(model_folder, folder)
        outputs = ["model"]
        if folds:
            from flows.durable import write_json

            write_json(workspace.output(FOLD_PAIRS), folds)
            outputs.append(FOLD_PAIRS)
        return StageResult(
            outputs=tuple(outputs),
            metrics={
                **figures,
                "score_mean": math.fsum(means) / len(means),
                "score_sd": math.fsum(spreads) / len(spreads),
                "groups": len(groups),
            },
        )

    request = run.request(
        STAGE,
        version=VERSION,
        settings=config.model_dump(mode="json"),
        inputs={
            start.stage: start.reference("model"),
            **{
                name_in_round("comparisons", number): artifact.reference(PREFERENCES)
                for number, artifact in enumerate(preferences, start=1)
            },
        },
    )
    return run.stage(request, work)


def _train(
    run: RunContext,
    groups: Sequence[PreferenceGroup],
    scored_groups: Sequence[PreferenceGroup],
    model_folder: Path,
    seed: int,
    *,
    export_to: Path | None = None,
    metrics: "MetricSink | None" = None,
) -> tuple["Tensor", "PreferenceBatch"]:
    """Train one reward model on `groups`; return raw scores of `scored_groups` and their batch.

    Scores are [N], or [N, heads] of an ensemble.
    """
    from alignment.training import reward_model

    config = run.config.reward_model
    total_steps = reward_model.num_reward_model_steps(config, len(groups))
    spec = TrainableSpec(
        name="reward_model",
        kind="value",
        model_folder=model_folder,
        optimizer=config.optimizer,
        training=config,
        total_steps=total_steps,
        seed=seed,
        resources=run.config.cluster.reward_model,
        layers=config.layers,
        heads=config.heads,
    )
    batch = encode_groups(run.config, groups, model_folder)
    scored = (
        batch if scored_groups is groups else encode_groups(run.config, scored_groups, model_folder)
    )
    with run.engines.roles([spec]) as roles, run.clock.phase("model_work"):
        reward_model.train_reward_model(
            config,
            roles["reward_model"],
            batch,
            seed=seed,
            metrics=metrics or run.sink(STAGE, total_steps),
        )
        scores = roles["reward_model"].scores(scored)
        if export_to is not None:
            roles["reward_model"].export(export_to)
    return scores, scored


def _fold_scores(
    run: RunContext, groups: Sequence[PreferenceGroup], model_folder: Path, seed: int
) -> list[dict[str, Any]]:
    """Cross-validation: each pair scored by a model that never saw its prompt."""
    folds = run.config.reward_model.folds
    if folds is None:
        return []
    fold_of = [_fold(group, folds) for group in groups]
    rows: list[dict[str, Any]] = []
    for fold in range(folds):
        held = [g for g, own in zip(groups, fold_of, strict=True) if own == fold]
        rest = [g for g, own in zip(groups, fold_of, strict=True) if own != fold]
        if not held:
            continue
        sink = _FoldProgress(run, fold, folds)
        scores, batch = _train(run, rest, held, model_folder, seed, metrics=sink)
        pairs = _scored_pairs(held, mean_over_heads(scores), batch)
        rows += [row | {"fold": fold} for row in pairs]
    return rows


def _fold(group: PreferenceGroup, folds: int) -> int:
    """Equal prompts share a fold, so no model is tested on a prompt it was trained on."""
    return derive_seed("fold", *(m.content for m in group.prompt.messages)) % folds


def _scored_pairs(
    groups: Sequence[PreferenceGroup], scores: "Tensor", batch: "PreferenceBatch"
) -> list[dict[str, Any]]:
    """Each decided pair with its scores and lengths, the preferred response as `better`."""
    tokens = batch.response_mask.sum(1)
    rows = []
    for index, group in enumerate(groups):
        own = (batch.group == index).nonzero().flatten().tolist()
        for comparison in group.comparisons:
            if comparison.preference == 0.5:
                continue
            pair = (own[comparison.first], own[comparison.second])
            better, worse = pair if comparison.preference > 0.5 else pair[::-1]
            rows.append(
                {
                    "prompt_id": str(derive_seed(*(m.content for m in group.prompt.messages))),
                    "better_score": float(scores[better]),
                    "worse_score": float(scores[worse]),
                    "better_tokens": int(tokens[better]),
                    "worse_tokens": int(tokens[worse]),
                }
            )
    return rows


class _FoldProgress:
    """Shows a fold's steps; its curve is not kept."""

    def __init__(self, run: RunContext, fold: int, folds: int) -> None:
        self._run, self._fold, self._folds = run, fold, folds

    def record(self, step: int, metrics: Any) -> None:
        self._run.progress.advance(
            step,
            step,
            f"step of fold {self._fold + 1}/{self._folds}",
            accuracy=metrics["reward_model/accuracy"],
        )


def encode_groups(
    config: PipelineConfig, groups: Sequence[PreferenceGroup], model_folder: Path
) -> "PreferenceBatch":
    """All responses of the groups as one batch of tokens."""
    from functools import partial

    from alignment.data.batching import preference_batch
    from alignment.data.chat import encode_example
    from alignment.models.loading import load_tokenizer

    encode = partial(
        encode_example,
        load_tokenizer(model_folder),
        max_prompt_tokens=config.model.max_prompt_tokens,
    )
    return preference_batch(groups, encode)


def pair_figures(scores: "Tensor", batch: "PreferenceBatch") -> dict[str, float]:
    """Loss and accuracy of given scores on a batch's own pairs."""
    from alignment.objectives.preference_losses import preference_group_loss

    sums = preference_group_loss(
        scores,
        group=batch.group,
        member=batch.member,
        preference=batch.preference,
        pair_weight=batch.pair_weight,
    )
    return {
        "train_loss": float(sums.loss / sums.weight),
        "train_accuracy": float(sums.correct / sums.decided) if float(sums.decided) else 0.0,
        "pairs": float(sums.decided),
    }


def baseline_of(
    scores: "Tensor", groups: Sequence[PreferenceGroup]
) -> tuple[list[float], list[float]]:
    """Mean and spread, for each head, of its scores of policy samples (imported ones count).

    With these the SFT policy scores 0 with spread 1, so the KL coefficient keeps its meaning.
    Each head has its own: comparisons leave a head's zero open, and different zeros would look
    like disagreement.
    """
    import torch

    flat = [response for group in groups for response in group.responses]
    is_sample = torch.tensor([not response.origin.startswith("probe") for response in flat])
    heads = scores[is_sample].reshape(int(is_sample.sum()), -1).T
    means = [float(head.mean()) for head in heads.unbind()]
    spreads = [float(head.std()) for head in heads.unbind()]
    if min(spreads) < 1e-6:
        raise NumericsError(
            "the reward model gives every response the same score (spread "
            f"{min(spreads):.2e}); PPO has nothing to learn from it. Raise the learning rate or "
            "check the comparisons"
        )
    return means, spreads


def normalise(folder: Path, means: Sequence[float], spreads: Sequence[float]) -> None:
    """Have the saved model answer with each head's scores less its mean, over its spread.

    `means` and `spreads` are of scores that the model gave with the normalisation it already
    has, which one that went on from an earlier reward model does.
    """
    from alignment.models.modules import read_value_head, write_normalisation

    _, own_means, own_scales = read_value_head(folder)
    old_means, old_scales = _for_each_head(own_means, means), _for_each_head(own_scales, means)
    # ((raw - m) s - M) / S = (raw - (m + M / s)) s / S
    shifts = [m + mean / s for m, s, mean in zip(old_means, old_scales, means, strict=True)]
    scales = [s / spread for s, spread in zip(old_scales, spreads, strict=True)]
    if len(scales) == 1:
        write_normalisation(folder, mean=shifts[0], scale=scales[0])
    else:
        write_normalisation(folder, mean=shifts, scale=scales)


def _for_each_head(numbers: "HeadNumbers", heads: Sequence[float]) -> Sequence[float]:
    return [numbers] * len(heads) if isinstance(numbers, float | int) else numbers


def mean_over_heads(scores: "Tensor") -> "Tensor":
    """Raw scores [N] as they are; those of an ensemble, [N, heads], as the heads' mean."""
    return scores if scores.ndim == 1 else scores.mean(1)
