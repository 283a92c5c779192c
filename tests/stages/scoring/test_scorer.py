import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from pipeline.errors import DataError, StageError
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.classifier import load_classifier
from stages.scoring.reward_model import RewardEnsemble
from stages.scoring.scorer import FunctionScorer, TextScorer, TokenScorer

PROMPTS = [EncodedPrompt([], ids, "train") for ids in tiny.rows(5, 2, 6, seed=1)]
RESPONSES = [[20, 1], [21, 22, 23, 1], [24], [25, 26, 27, 28, 29], [1]]


# --- A reward model on the policy's tokenizer ---


def by_hand(bank, role, responses):
    """Each sequence alone: the head at its last token."""
    scores = []
    for prompt, response in zip(PROMPTS, responses, strict=True):
        with bank.active(role) as actor:
            scores.append(actor.scalar(actor.hidden(torch.tensor([prompt.ids + response])))[0, -1].item())
    return scores


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_banks_reward_role_reads_the_last_token(batch_size):
    bank = tiny.lora_bank(distinct=True)
    scorer = TokenScorer(RewardEnsemble(bank, ["reward"]), tiny.codec(), "cpu", batch_size=batch_size)
    np.testing.assert_allclose(scorer(PROMPTS, RESPONSES), by_hand(bank, "reward", RESPONSES), atol=1e-5)


def test_members_come_one_by_one_and_their_mean_is_the_score():
    bank = tiny.lora_bank(distinct=True)
    scorer = TokenScorer(RewardEnsemble(bank, ["reward", "value"]), tiny.codec(), "cpu", batch_size=2)
    expected = [by_hand(bank, role, RESPONSES) for role in ("reward", "value")]
    assert scorer.size == 2
    np.testing.assert_allclose(scorer.members(PROMPTS, RESPONSES), expected, atol=1e-5)
    np.testing.assert_allclose(scorer(PROMPTS, RESPONSES), np.mean(expected, 0), atol=1e-5)


def test_a_response_that_ended_by_another_stop_token_is_scored_as_those_of_the_rankings():
    """<eos> ends a response under ChatML too, and rankings end with <|im_end|>."""
    bank = tiny.lora_bank(distinct=True)
    scorer = TokenScorer(RewardEnsemble(bank, ["reward"]), tiny.codec("chatml"), "cpu", batch_size=2)
    trained = [[*response[:-1], tiny.IM_END] if response[-1] == tiny.EOS else response for response in RESPONSES]
    np.testing.assert_allclose(scorer(PROMPTS, RESPONSES), by_hand(bank, "reward", trained), atol=1e-5)
    assert not np.allclose(scorer(PROMPTS, RESPONSES), by_hand(bank, "reward", RESPONSES), atol=1e-3)


def test_a_batch_that_does_not_fit_is_halved_once_and_said_once(monkeypatch):
    """The next call starts with the size that fits."""
    model, lines, done = RewardEnsemble(tiny.lora_bank(distinct=True), ["reward"]), [], []
    scorer = TokenScorer(model, tiny.codec(), "cpu", batch_size=4, say=lines.append, on_batch=done.append)
    expected = scorer(PROMPTS, RESPONSES)
    members, sizes = model.members, []

    def scarce(ids_BL, lengths_B):
        sizes.append(len(ids_BL))
        if len(ids_BL) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return members(ids_BL, lengths_B)

    monkeypatch.setattr(model, "members", scarce)
    done.clear()
    for _ in range(2):
        torch.testing.assert_close(scorer(PROMPTS, RESPONSES), expected)
    assert sizes == [4, 2, 2, 1, 2, 2, 1]
    assert sum(done) == 2 * len(RESPONSES)
    assert lines == ["out of memory: scoring goes on with 2 sequences at once instead of 4"]


def test_what_is_whole_while_a_role_scores_is_whole_for_all_batches(monkeypatch):
    """Processes have unequal numbers of batches, so that none may wait for another between them."""
    bank, events = tiny.full_bank(), []
    whole = bank.whole

    def noted(role, **values):
        events.append(role)
        return whole(role, **values)

    monkeypatch.setattr(bank, "whole", noted)
    scorer = TokenScorer(RewardEnsemble(bank, ["reward"]), tiny.codec(), "cpu", batch_size=2)
    with scorer.scoring():
        assert events == ["reward"]
    scorer(PROMPTS, RESPONSES)  # the role's first pass also gathers it once to look at its layers
    events.clear()
    scorer(PROMPTS, RESPONSES)
    assert events[0] == "reward"
    assert len(events) == 1 + 3, "once for all, and in each of the three batches, where it is a no-op"


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


CONVERSATIONS = [
    tiny.user("what?"),
    [{"role": "system", "content": "be brief"}, *tiny.user("a b")],
    [*tiny.user("q"), {"role": "assistant", "content": "no."}, *tiny.user("why")],
    tiny.user("x"),
    tiny.user(" y "),
]


def encoded(codec):
    return [EncodedPrompt(messages, codec.prompt(messages), "train") for messages in CONVERSATIONS]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("template", [None, "chatml"])
@pytest.mark.parametrize("policys", ["plain", "chatml"])
def test_text_is_the_boundary(tmp_path, policys, template, batch_size):
    """The classifier reads the real turns, under its own template, whatever the policy's is."""
    codec = tiny.codec(policys)
    tokenizer = classifier(tmp_path, template=template)
    scorer = TextScorer(load_classifier(str(tmp_path), "cpu"), codec, batch_size=batch_size)
    scores = scorer(encoded(codec), RESPONSES)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    alphabet = {i: c for c, i in codec.tokenizer.get_vocab().items()}
    for row, (messages, response) in enumerate(zip(CONVERSATIONS, RESPONSES, strict=True)):
        answer = "".join(alphabet[i] for i in response if i != tiny.EOS)
        text = "".join(f"{turn['content']}\n" for turn in messages) + f"{answer}<eos>"
        if template:
            turns = [(turn["role"], turn["content"]) for turn in messages] + [("assistant", answer)]
            text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            expected = model.score(model.model(ids).last_hidden_state)[0, -1, 0].item()
        assert scores[row].item() == pytest.approx(expected, abs=1e-5), text


def test_a_conversation_that_the_classifiers_template_refuses_is_named_before_sampling(tmp_path):
    tokenizer = classifier(tmp_path)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system!') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path)
    scorer = TextScorer(load_classifier(str(tmp_path), "cpu", "eval.reward_model"), tiny.codec())
    with pytest.raises(DataError, match="No system!") as caught:
        scorer.check(CONVERSATIONS)
    assert caught.value.where == "eval.reward_model: 'a b'"


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
    scorer = TextScorer(load_classifier(str(tmp_path), "cpu"), tiny.codec())
    prompts = [EncodedPrompt(tiny.user(text), [], "train") for text in ("", "a")]
    assert scorer(prompts, [[tiny.EOS], [tiny.EOS]]).isfinite().all()


# --- A function ---


def test_a_function_reads_conversations_and_texts():
    codec = tiny.codec()
    read = []

    def vowels(conversations, responses):
        read.append((conversations, responses))
        return [sum(letter in "aeiou" for letter in response) for response in responses]

    scorer = FunctionScorer(vowels, codec)
    prompts = encoded(codec)[:2]
    scores = scorer(prompts, [codec.completion("a pub"), codec.completion("xyz")])
    assert scorer.name == "vowels"
    assert scores.tolist() == [2.0, 0.0]
    assert scores.dtype == torch.float32
    assert read == [(CONVERSATIONS[:2], ["a pub", "xyz"])]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], r"shape \(1,\) for 2 responses"),
        ([[1.0], [2.0]], r"shape \(2, 1\) for 2"),
        ([1.0, float("nan")], "gave 1 of 2 responses a score that is NaN or infinite"),
    ],
)
def test_a_function_that_does_not_return_one_finite_number_per_response_is_refused(values, message):
    scorer = FunctionScorer(lambda conversations, responses: values, tiny.codec(), name="rule")
    with pytest.raises(StageError, match=message) as caught:
        scorer(PROMPTS[:2], RESPONSES[:2])
    assert caught.value.where == "rule"
