import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from pipeline.config.ppo import AggregateConfig, ScoreConfig
from pipeline.errors import DataError, StageError
from stages.sampling.episodes import Episodes
from stages.scoring.classifier import load_classifier
from stages.scoring.reward_model import RewardEnsemble
from stages.scoring.scorer import EnsembleScorer, ScoreNormalizer, TextScorer, aggregate, disagreement, token_scorer
from stages.scoring.text_encoder import TextEncoder
from stages.training.distributed import World

BATCHES = [np.random.default_rng(i).normal(3 * i - 4, 1 + i, size=5 + i).astype("float32") for i in range(4)]


def normalizer(**values):
    return ScoreNormalizer(ScoreConfig(**({"clip": None} | values)), World())


def test_running_moments_against_numpy():
    running = normalizer(normalization="running")
    for i, batch in enumerate(BATCHES):
        found = running(torch.from_numpy(batch))
        seen = np.concatenate(BATCHES[: i + 1]).astype(float)
        assert running.mean == pytest.approx(seen.mean(), rel=1e-6)
        assert running.std == pytest.approx(seen.std(), rel=1e-6)
        np.testing.assert_allclose(found, (batch - seen.mean()) / seen.std(), atol=1e-4)


def test_state_goes_on_where_it_stood():
    whole = normalizer(normalization="running")
    for batch in BATCHES:
        expected = whole(torch.from_numpy(batch))
    first, second = normalizer(normalization="running"), normalizer(normalization="running")
    for batch in BATCHES[:2]:
        first(torch.from_numpy(batch))
    second.load_state_dict(first.state_dict())
    for batch in BATCHES[2:]:
        found = second(torch.from_numpy(batch))
    assert torch.equal(found, expected)
    assert second.state_dict() == whole.state_dict()


def test_reference_moments_are_taken_once():
    fixed = normalizer(normalization="reference")
    fixed.prepare(lambda: torch.from_numpy(BATCHES[0]))
    fixed.prepare(lambda: pytest.fail("already prepared"))
    for batch in BATCHES:
        expected = (batch - BATCHES[0].mean()) / BATCHES[0].std()
        np.testing.assert_allclose(fixed(torch.from_numpy(batch)), expected, atol=1e-4)
    assert fixed.mean == pytest.approx(BATCHES[0].astype(float).mean(), rel=1e-6)


def test_without_normalization_nothing_is_sampled_or_changed():
    none = normalizer(normalization="none")
    none.prepare(lambda: pytest.fail("not wanted"))
    assert torch.equal(none(torch.from_numpy(BATCHES[2])), torch.from_numpy(BATCHES[2]))


def test_clip_is_of_the_normalised_score():
    clipped = normalizer(normalization="reference", clip=1.5)
    clipped.prepare(lambda: torch.tensor([8.0, 12.0]))  # mean 10, standard deviation 2
    assert clipped(torch.tensor([0.0, 9.0, 12.9, 14.0])).tolist() == pytest.approx([-1.5, -0.5, 1.45, 1.5])
    assert normalizer(normalization="none", clip=1.0)(torch.tensor([-7.0])).item() == -1.0


def test_equal_scores_are_finite():
    running = normalizer(normalization="running")
    assert torch.equal(running(torch.full((4,), 3.0)), torch.zeros(4))


PROMPTS, RESPONSES = tiny.rows(5, 2, 6, seed=1), [[20, 1], [21, 22, 23, 1], [24], [25, 26, 27, 28, 29], [1]]


@pytest.fixture
def episodes():
    return Episodes.build(PROMPTS, RESPONSES, {tiny.EOS}, tiny.PAD)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_banks_reward_role_reads_the_last_token(episodes, batch_size):
    bank = tiny.lora_bank(distinct=True)
    found = token_scorer(RewardEnsemble(bank, ["reward"]), batch_size, "cpu")(episodes)
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        with bank.active("reward") as actor:
            expected.append(actor.scalar(actor.hidden(torch.tensor([prompt + response])))[0, -1].item())
    np.testing.assert_allclose(found, expected, atol=1e-5)


# --- A sequence classifier with a tokenizer of its own ---


def classifier(folder, *, template=None, labels=1, **special):
    """With another order of tokens than the policy's, and another width."""
    tokenizer = tiny.tokenizer(template, characters=tiny.CHARACTERS[::-1], **special)
    torch.manual_seed(5)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=labels,
            initializer_range=0.5,
            bos_token_id=None,
            eos_token_id=tiny.EOS,
            pad_token_id=tiny.PAD,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


TALKS = [
    tiny.user("what?"),
    [{"role": "system", "content": "be brief"}, *tiny.user("a b")],
    [*tiny.user("q"), {"role": "assistant", "content": "no."}, *tiny.user("why")],
    tiny.user("x"),
    tiny.user(" y "),
]


def text_episodes(codec):
    """Episodes of `TALKS`, and the conversation of each prompt's ids."""
    prompts = [codec.prompt(talk) for talk in TALKS]
    episodes = Episodes.build(prompts, RESPONSES, codec.stop_ids, codec.pad_id)
    return episodes, {tuple(prompt): talk for prompt, talk in zip(prompts, TALKS, strict=True)}


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("template", [None, "chatml"])
@pytest.mark.parametrize("policys", ["plain", "chatml"])
def test_text_is_the_boundary(tmp_path, policys, template, batch_size):
    """The classifier reads the real turns, under its own template, whatever the policy's is."""
    codec = tiny.codec(policys)
    tokenizer = classifier(tmp_path, template=template)
    episodes, prompts = text_episodes(codec)
    found = TextScorer(load_classifier(str(tmp_path), "cpu"), codec, batch_size, prompts)(episodes)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    alphabet = {i: c for c, i in codec.tokenizer.get_vocab().items()}
    for row, (talk, response) in enumerate(zip(TALKS, RESPONSES, strict=True)):
        said = "".join(alphabet[i] for i in response if i != tiny.EOS)
        text = "".join(f"{turn['content']}\n" for turn in talk) + f"{said}<eos>"
        if template:
            turns = [(turn["role"], turn["content"]) for turn in talk] + [("assistant", said)]
            text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            expected = model.score(model.model(ids).last_hidden_state)[0, -1, 0].item()
        assert found[row].item() == pytest.approx(expected, abs=1e-5), text


def test_a_conversation_that_the_classifiers_template_refuses_is_named_before_sampling(tmp_path):
    codec = tiny.codec()
    tokenizer = classifier(tmp_path)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system!') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="No system!") as caught:
        TextScorer(load_classifier(str(tmp_path), "cpu"), codec, 2, text_episodes(codec)[1])
    assert caught.value.where == "ppo.reward_model: 'a b'"


def test_a_response_that_ended_by_another_stop_token_is_scored_as_those_of_the_rankings(episodes):
    """<eos> ends a response under ChatML too, and rankings end with <|im_end|>."""
    codec = tiny.codec("chatml")
    bank = tiny.lora_bank(distinct=True)
    model = RewardEnsemble(bank, ["reward"])
    trained = [[*response[:-1], tiny.IM_END] if response[-1] == tiny.EOS else response for response in RESPONSES]
    expected = token_scorer(model, 2, "cpu")(Episodes.build(PROMPTS, trained, codec.stop_ids, tiny.PAD))
    np.testing.assert_array_equal(token_scorer(model, 2, "cpu", codec)(episodes), expected)
    assert not np.allclose(token_scorer(model, 2, "cpu")(episodes), expected)


@pytest.mark.parametrize("special", [{"pad_token": "<eos>"}, {"pad_token": None}], ids=["pad is eos", "no pad"])
def test_a_pad_token_of_its_own_is_asked_for(tmp_path, special):
    classifier(tmp_path, **special)
    with pytest.raises(StageError, match="pad token is its EOS"):
        load_classifier(str(tmp_path), "cpu")


@pytest.mark.parametrize("labels", [2, 5])
def test_one_label_is_asked_for(tmp_path, labels):
    classifier(tmp_path, labels=labels)
    with pytest.raises(StageError, match=f"this classifier has {labels}"):
        load_classifier(str(tmp_path), "cpu")


def test_a_folder_without_a_classifier_is_refused(tmp_path):
    with pytest.raises(StageError, match="cannot be loaded"):
        load_classifier(str(tmp_path / "nowhere"), "cpu")


def test_an_empty_response_is_scored(tmp_path):
    classifier(tmp_path)
    encoder = TextEncoder(load_classifier(str(tmp_path), "cpu"), tiny.codec())
    assert torch.isfinite(encoder.score([tiny.user(""), tiny.user("a")], [[tiny.EOS], [tiny.EOS]], 2)).all()


# --- Ensembles ---

MEMBERS = np.random.default_rng(3).normal(size=(4, 6)).astype("float32")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, MEMBERS.mean(0)),
        ({"aggregate": "min"}, MEMBERS.min(0)),
        ({"aggregate": "uncertainty", "uncertainty_coef": 0.5}, MEMBERS.mean(0) - 0.5 * MEMBERS.std(0)),
        ({"aggregate": "uncertainty", "uncertainty_coef": 0.0}, MEMBERS.mean(0)),
    ],
)
def test_aggregates(values, expected):
    np.testing.assert_allclose(aggregate(torch.from_numpy(MEMBERS), AggregateConfig(**values)), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "min", "uncertainty"])
def test_members_of_one_mind_change_nothing(kind):
    same = torch.from_numpy(MEMBERS[:1]).expand(3, -1)
    found = aggregate(same, AggregateConfig(aggregate=kind, uncertainty_coef=7.0))
    np.testing.assert_allclose(found, MEMBERS[0], atol=1e-6)


def test_the_ensembles_disagreement_is_that_of_the_last_episodes(episodes):
    class Members:
        def members(self, ids_BL, lengths_B):
            return torch.stack([lengths_B, 3 * lengths_B]).float()

    scorer = EnsembleScorer(Members(), AggregateConfig(aggregate="min"), 2, "cpu")
    lengths = episodes.lengths_B.float()
    np.testing.assert_allclose(scorer(episodes), lengths)
    assert disagreement(scorer, World()) == {"objective/scores_disagreement": pytest.approx(lengths.mean().item())}
    assert disagreement(lambda _: lengths, World()) == {}, "one model disagrees with nobody"
