"""A reward model with another tokenizer than the policy's, and an ensemble as a source."""

from pathlib import Path
from typing import Any

import pytest
import torch
from reward_texts import pair, prompt
from torch import Tensor

from alignment.config import PipelineConfig
from alignment.data.chat import encode_prompt, encode_response
from alignment.errors import ConfigError, DataError
from alignment.experience import EncodedPrompt, Rollout, TokenBatch, batch_from_rows
from alignment.models.loading import load_tokenizer, load_value_model
from alignment.models.tiny import make_tiny_model
from alignment.records import Prompt, Response
from alignment.rewards.assemble import plan_reward
from alignment.rewards.models import ModelSource, Retokeniser, same_tokens
from alignment.rewards.texts import BatchTexts
from alignment.role_specs import FrozenSpec
from alignment.roles_local import start_roles

TEMPLATE = "{% for m in messages %}{{ m.role }}> {{ m.content }}\n{% endfor %}assistant> "


@pytest.fixture(scope="module")
def own_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model on the policy's tokens."""
    return reward_folder(tiny_model, tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def foreign_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model whose vocabulary is in another order, with words in it, and another chat."""
    base = tmp_path_factory.mktemp("foreign-base")
    make_tiny_model(base, seed=7)
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["sky", "blue"])
    tokenizer.chat_template = TEMPLATE
    folder = reward_folder(base, tmp_path_factory.mktemp("foreign"), vocabulary=len(tokenizer))
    tokenizer.save_pretrained(folder)
    return folder


def reward_folder(base: Path, folder: Path, *, vocabulary: int | None = None) -> Path:
    model = load_value_model(base, seed=1)
    if vocabulary is not None:
        model.backbone.resize_token_embeddings(vocabulary, mean_resizing=False)
    model.save(folder)
    load_tokenizer(base).save_pretrained(folder)
    return folder


def rollout(tokenizer: Any, encoded: EncodedPrompt, texts: list[tuple[str, bool]]) -> TokenBatch:
    endings = {True: "stop", False: "length"}
    responses = [
        encode_response(tokenizer, Response(id="r", text=text, finish_reason=endings[finished]))
        for text, finished in texts
    ]
    return batch_from_rows([encoded.token_ids] * len(texts), responses)


def test_texts_survive_the_way_to_the_other_models_tokens(
    tokenizer: Any,
    encoded_prompts: list[tuple[EncodedPrompt, Prompt]],
    own_folder: Path,
    foreign_folder: Path,
) -> None:
    other = load_tokenizer(foreign_folder)
    assert not same_tokens(tokenizer, other)
    assert same_tokens(tokenizer, load_tokenizer(own_folder))

    encoded, about = encoded_prompts[0]
    texts = [("the sky is blue, 天空是蓝的", True), ("sky sky", False)]
    batch = rollout(tokenizer, encoded, texts)
    read = BatchTexts(tokenizer, encoded_prompts).read(batch)
    assert [(t.prompt, t.response, t.finished) for t in read] == [(about, *text) for text in texts]

    recoded = Retokeniser(other).encode(read)
    for row, (text, finished) in enumerate(texts):
        tokens = recoded.token_ids[row][recoded.attention_mask[row]].tolist()
        ending = "<|im_end|>" if finished else ""
        expected = f"user> {about.messages[0].content}\nassistant> {text}{ending}"
        assert other.decode(tokens, skip_special_tokens=False) == expected
        response = recoded.token_ids[row][recoded.response_mask[row]].tolist()
        assert other.decode(response, skip_special_tokens=False) == text + ending
    assert recoded.attention_mask.sum() < batch.attention_mask.sum()  # words are tokens there


def test_scores_are_those_the_model_gives_its_own_encoding(
    tokenizer: Any, encoded_prompts: list[tuple[EncodedPrompt, Prompt]], foreign_folder: Path
) -> None:
    other = load_tokenizer(foreign_folder)
    encoded, about = encoded_prompts[0]
    batch = rollout(tokenizer, encoded, [("the sky is blue", True)])
    role = start_roles([FrozenSpec(name="rm", kind="value", model_folder=foreign_folder)])["rm"]
    source = ModelSource(role=role, retokeniser=Retokeniser(other))
    said = source.score(batch, BatchTexts(tokenizer, encoded_prompts).read(batch))

    direct = batch_from_rows(
        [encode_prompt(other, about, max_prompt_tokens=999).token_ids],
        [encode_response(other, Response(id="r", text="the sky is blue"))],
    )
    assert torch.equal(said.scores, role.scores(direct))
    assert not torch.equal(said.scores, role.scores(batch))  # the policy's tokens mean other words


def test_an_empty_response_and_a_too_long_one(foreign_folder: Path) -> None:
    other = load_tokenizer(foreign_folder)
    empty = Retokeniser(other).encode([pair("", finished=True), pair(" ", finished=False)])
    assert empty.response_mask.sum(1).tolist() == [1, 0]
    with pytest.raises(DataError, match="the reward model, which reads 10"):
        Retokeniser(other, max_tokens=10).encode([pair("a much longer response than that")])


def test_a_rollout_itself_says_which_responses_were_finished(
    tokenizer: Any, encoded_prompts: list[tuple[EncodedPrompt, Prompt]]
) -> None:
    batch = rollout(tokenizer, encoded_prompts[0][0], [("yes", True), ("no", True)])
    sampled = Rollout(
        token_ids=batch.token_ids,
        attention_mask=batch.attention_mask,
        response_mask=batch.response_mask,
        sampling_logprobs=torch.zeros(batch.token_ids.shape),
        finished=torch.tensor([True, False]),
        prompt_index=torch.tensor([0, 0]),
        policy_version=torch.tensor([0, 0]),
    )
    read = BatchTexts(tokenizer, encoded_prompts).read(sampled)
    assert [text.finished for text in read] == [True, False]


def test_a_prompt_nobody_gave_has_no_text(
    tokenizer: Any, encoded_prompts: list[tuple[EncodedPrompt, Prompt]]
) -> None:
    stranger = encode_prompt(tokenizer, prompt("Who?"), max_prompt_tokens=200)
    batch = rollout(tokenizer, stranger, [("I", True)])
    with pytest.raises(DataError, match="none of the 2 known ones"):
        BatchTexts(tokenizer, encoded_prompts).read(batch)


def config(**reward: object) -> PipelineConfig:
    return PipelineConfig.model_validate({"reward": reward})


def test_the_critic_starts_where_its_tokens_are_known(
    tiny_model: Path, own_folder: Path, foreign_folder: Path
) -> None:
    folders = {"policy_folder": tiny_model, "own_folder": own_folder}
    default = plan_reward(config(), **folders)
    assert (default.model_folder, default.critic_folder) == (own_folder, own_folder)
    assert default.retokeniser is None

    foreign = plan_reward(config(trained={"folder": foreign_folder}), **folders)
    assert (foreign.model_folder, foreign.critic_folder) == (foreign_folder, tiny_model)
    assert foreign.retokeniser is not None
    assert foreign.retokeniser.max_tokens == 2048

    by_function = plan_reward(config(function={"brevity": {"function": "m:f"}}), **folders)
    assert by_function.critic_folder == tiny_model

    wish = {"trained": {"folder": foreign_folder}, "critic_start": "reward_model"}
    with pytest.raises(ConfigError, match=r"`reward\.critic_start`.*another tokenizer"):
        plan_reward(config(**wish), **folders)


def test_a_folder_without_a_reward_model_and_a_penalty_without_heads_are_refused(
    tiny_model: Path, own_folder: Path
) -> None:
    folders = {"policy_folder": tiny_model, "own_folder": own_folder}
    with pytest.raises(ConfigError, match="no value head"):
        plan_reward(config(trained={"folder": tiny_model}), **folders)
    penalty = {"folder": own_folder, "disagreement_penalty": 1.0}
    with pytest.raises(ConfigError, match="one head"):
        plan_reward(config(trained=penalty), **folders)


class HeadScores:
    """Answers as an ensemble's role does."""

    def scores(self, batch: TokenBatch) -> Tensor:
        return torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])


def test_an_ensemble_pays_its_mean_less_its_disagreement() -> None:
    batch = batch_from_rows([[1], [1]], [[2], [2]])
    said = ModelSource(role=HeadScores(), disagreement_penalty=0.5).score(batch, [])
    assert said.scores.tolist() == [1.5, 5.0]
    assert said.disagreement is not None
    assert said.disagreement.tolist() == [1.0, 0.0]
