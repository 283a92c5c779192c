"""An exported reward model gives the reward model's scores in plain transformers."""

import json

import published
import pytest
import tiny
import torch
from reward_runs import reward_run
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    pipeline,
)

from pipeline.engine.stage import Artifact
from pipeline.errors import DataError, StageError
from stages.export import reward as exporting
from stages.export.reward import Options, as_classifier, export_reward
from stages.export.scoring_template import scoring_template
from stages.models.heads import at_last_token
from stages.models.text import Codec, load_codec
from stages.score import source
from stages.score.model import Answers
from stages.scoring import exported
from stages.scoring.classifier import TextClassifier, save_classifier
from stages.scoring.load import load_scorer
from stages.scoring.reward_model import fingerprints_of


def answer(text):
    return [{"role": "assistant", "content": text}]


TALKS = [
    [*tiny.user("what is a fox"), *answer("a red one.")],
    [*tiny.user("ab"), *answer("c"), *tiny.user("de"), *answer("f")],
    [*tiny.user("q"), *answer(" x\n")],
]


def expected(run, member=0):
    """The scores of TALKS by one member of the reward model, as PPO would score them."""
    codec = load_codec(run.base)
    scorer = load_scorer(run.reward, {"base": run.base}, codec, "cpu")
    rows = [codec.prompt(talk[:-1]) + codec.completion(talk[-1]["content"]) for talk in TALKS]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([row + [codec.pad_id] * (max(lengths) - len(row)) for row in rows])
    return scorer.model.members(ids, lengths)[member]


def plain_scores(folder):
    """The same in plain transformers: one padded batch, as the model card shows it. Without the offset."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = tokenizer.apply_chat_template(TALKS, padding=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return model(**inputs).logits[:, 0]


@pytest.mark.parametrize("template", ["plain", "chatml"])
@pytest.mark.parametrize("values", [{}, {"lora": False}, {"members": 2}], ids=["lora", "full", "member"])
def test_plain_transformers_gives_the_scores(tmp_path, template, values):
    run = reward_run(tmp_path / "runs", template=template, **values)
    member = 1 if "members" in values else None
    result = export_reward(run.base, run.reward, tmp_path / "out", "cpu", Options(member=member))
    wanted = expected(run, member or 0)
    assert float(wanted.std()) > 0.05
    torch.testing.assert_close(plain_scores(tmp_path / "out") + result.spec.offset, wanted, atol=1e-4, rtol=0)
    assert result.template_is_exact
    assert result.difference.deviation.largest < 1e-5
    # Our own loading adds the offset, verifies the fingerprints and encodes in the same way.
    rows = [Answers(talk[:-1], [talk[-1]["content"]]) for talk in TALKS]
    scored = [row.scores[0] for row in source.from_place(str(tmp_path / "out"), None, "cpu").score(rows)]
    assert scored == pytest.approx(wanted.tolist(), abs=1e-4)


def test_the_config_follows_the_conventions_for_raw_scores(tmp_path):
    run = reward_run(tmp_path / "runs")
    export_reward(run.base, run.reward, tmp_path / "out", "cpu", Options())
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["problem_type"] == "regression"  # no sigmoid in pipelines and in vLLM
    assert (config["id2label"], config["label2id"]) == ({"0": "reward"}, {"reward": 0})
    assert config["pad_token_id"] == tiny.PAD
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.truncation_side, tokenizer.padding_side, tokenizer.pad_token) == ("left", "right", "<pad>")
    assert tokenizer.model_max_length == 128
    scores = pipeline("text-classification", str(tmp_path / "out"), device="cpu")
    text = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(TALKS[0], tokenize=False)
    result = scores(text, add_special_tokens=False)[0]
    assert result["label"] == "reward"
    assert result["score"] == pytest.approx(float(plain_scores(tmp_path / "out")[0]), abs=1e-4)


def test_the_offset_is_the_heads_bias(tmp_path):
    run = reward_run(tmp_path / "runs")
    from safetensors.torch import load_file, save_file

    head = load_file(run.reward.path / "head.safetensors")
    head["bias"] += 3
    save_file(head, run.reward.path / "head.safetensors")
    spec = run.reward.json("reward.json")
    for row in spec["fingerprints"]:
        row["score"] += 3
    (run.reward.path / "reward.json").write_text(json.dumps(spec))
    result = export_reward(run.base, run.reward, tmp_path / "out", "cpu", Options())
    assert result.spec.offset == pytest.approx(float(head["bias"]))
    torch.testing.assert_close(plain_scores(tmp_path / "out") + 3, expected(run), atol=1e-4, rtol=0)
    scorer = load_scorer(str(tmp_path / "out"), {}, load_codec(run.base), "cpu")  # as ppo.reward_model
    scores = scorer.of_texts([(talk[:-1], talk[-1]["content"]) for talk in TALKS])[0]
    torch.testing.assert_close(scores, expected(run), atol=1e-4, rtol=0)


def test_fingerprints_hold_no_training_text_and_are_verified(tmp_path):
    run = reward_run(tmp_path / "runs", system="be brief")
    export_reward(run.base, run.reward, tmp_path / "out", "cpu", Options(system="be brief", max_length=40))
    spec = exported.read(tmp_path / "out")
    assert [row.messages[0] for row in spec.fingerprints] == [{"role": "system", "content": "be brief"}] * 4
    assert [row.messages[1:] for row in spec.fingerprints] == exporting.PROBES
    trained_on = [row["ids"] for row in run.reward.json("reward.json")["fingerprints"]]
    assert not any(row.ids in trained_on for row in spec.fingerprints)
    content = json.loads((tmp_path / "out/reward_model.json").read_text())
    content["fingerprints"][2]["score"] += 0.01
    (tmp_path / "out/reward_model.json").write_text(json.dumps(content))
    with pytest.raises(StageError, match="does not give the scores it was stored with"):
        source.from_place(str(tmp_path / "out"), None, "cpu")


def test_16_bits_are_compared_by_their_spread(tmp_path):
    run = reward_run(tmp_path / "runs")
    result = export_reward(run.base, run.reward, tmp_path / "out", "cpu", Options(dtype="bfloat16"))
    assert 1e-4 < result.difference.deviation.largest < 0.3
    source.from_place(str(tmp_path / "out"), None, "cpu")  # its own fingerprints hold


def test_a_file_that_is_not_the_reward_model_is_refused(tmp_path, monkeypatch):
    run = reward_run(tmp_path / "runs")

    def changed(lm, head, pad_id):
        model = as_classifier(lm, head, pad_id)
        with torch.no_grad():
            model.score.weight *= 1.01
        return model

    monkeypatch.setattr(exporting, "as_classifier", changed)
    with pytest.raises(StageError, match="does not give the reward model's scores"):
        export_reward(run.base, run.reward, tmp_path / "out", "cpu", Options())
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]


def test_an_ensemble_needs_a_member(tmp_path):
    run = reward_run(tmp_path / "runs", members=2)
    with pytest.raises(StageError, match="an ensemble of 2, and a sequence classifier holds one model"):
        export_reward(run.base, run.reward, tmp_path / "out", "cpu", Options())
    with pytest.raises(StageError, match="there is no member 2"):
        export_reward(run.base, run.reward, tmp_path / "out", "cpu", Options(member=2))


def test_weights_of_quantisation_aware_training_are_exported_as_they_were_rounded(tmp_path):
    run = reward_run(tmp_path / "runs", quantization={"qat": "q8_0", "activations": "none"})
    result = export_reward(run.base, run.reward, tmp_path / "out", "cpu", Options())
    torch.testing.assert_close(
        plain_scores(tmp_path / "out") + result.spec.offset, expected(run), atol=1e-4, rtol=0
    )


def test_an_adapter_on_a_quantised_base_is_merged_only_on_request(tmp_path):
    run = reward_run(tmp_path / "runs", quantization="nf4")
    with pytest.raises(StageError, match="merged with it, it is another model"):
        export_reward(run.base, run.reward, tmp_path / "out", "cpu", Options())
    result = export_reward(run.base, run.reward, tmp_path / "out", "cpu", Options(merge_quantized=True))
    assert result.difference.other_model
    difference = plain_scores(tmp_path / "out") + result.spec.offset - expected(run)
    assert float(difference.abs().max()) < 0.3


@pytest.mark.parametrize("around", [None, ("<bos>", "<|im_end|>"), ("<bos>", "<eos>")])
def test_an_encoder_is_exported_with_its_fingerprints(tmp_path, around):
    torch.manual_seed(3)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=tiny.VOCABULARY, pad_token_id=tiny.PAD, num_labels=1, **size)
    tokenizer = tiny.tokenizer(None, bos_token="<bos>")
    if around is not None:  # as [CLS] and [SEP]
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in around]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{around[0]} $A {around[1]}", special_tokens=ids
        )
    encoder = TextClassifier(BertForSequenceClassification(config).eval(), tokenizer)
    base = tiny.base_artifact(tmp_path / "base")
    reward = Artifact("reward", tmp_path / "reward", "")
    reward.path.mkdir()
    save_classifier(encoder, reward.path, fingerprints_of(encoder, tiny.rows(3, 4, 8), "cpu"))
    result = export_reward(base, reward, tmp_path / "out", "cpu", Options())
    assert result.template_is_exact
    assert json.loads((tmp_path / "out/config.json").read_text())["problem_type"] == "regression"
    rows = [Answers(talk[:-1], [talk[-1]["content"]]) for talk in TALKS]
    scored = [row.scores[0] for row in source.from_place(str(tmp_path / "out"), None, "cpu").score(rows)]
    wanted = load_scorer(reward, {"base": base}, load_codec(base), "cpu")
    texts = [(talk[:-1], talk[-1]["content"]) for talk in TALKS]
    assert scored == pytest.approx(wanted.of_texts(texts)[0].tolist(), abs=1e-5)


def test_an_earlier_export_is_replaced_and_other_files_are_not(tmp_path):
    run = reward_run(tmp_path / "runs")
    (tmp_path / "out").mkdir()
    export_reward(run.base, run.reward, tmp_path / "out", "cpu", Options())
    export_reward(run.base, run.reward, tmp_path / "out", "cpu", Options(max_length=7))
    assert exported.read(tmp_path / "out").max_length == 7
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").touch()
    with pytest.raises(DataError, match="is not empty"):
        export_reward(run.base, run.reward, tmp_path / "other", "cpu", Options())


@pytest.mark.parametrize("lm", [tiny.lm, tiny.gpt2], ids=["llama", "gpt2"])
def test_the_classifier_reads_the_last_token_that_is_not_padding(lm):
    model, head = lm(), tiny.head()
    rows = tiny.rows(3, 4, 9, seed=1)
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([row + [tiny.PAD] * (9 - len(row)) for row in rows])
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=ids).last_hidden_state
        wanted = head(at_last_token(hidden, lengths)) - head.bias
        logits = as_classifier(model, head, tiny.PAD)(input_ids=ids, attention_mask=(ids != tiny.PAD).long()).logits
    torch.testing.assert_close(logits[:, 0], wanted, atol=1e-5, rtol=1e-5)


def test_a_pad_token_that_ends_answers_gets_a_replacement():
    tokenizer = tiny.tokenizer("chatml", pad_token="<|im_end|>")
    codec, model = Codec(tokenizer), tiny.lm()
    assert codec.pad_id == codec.end_id
    ours = exporting._tokenizer(codec, 128, model)
    assert ours.pad_token == "<|pad|>"
    assert ours.pad_token_id == len(tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) + 1
    assert tokenizer.pad_token == "<|im_end|>"


KINDS = {name: make for name, make in published.KINDS.items() if not name.startswith("Llama, legacy")}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_template_renders_what_the_reward_model_reads(name):
    codec = Codec(KINDS[name]())
    tokenizer = KINDS[name]()
    tokenizer.chat_template = scoring_template(codec)
    for talk in TALKS[:2]:
        text = tokenizer.apply_chat_template(talk, tokenize=False)
        assert text.endswith(talk[-1]["content"] + codec.end)
        prompt = tokenizer.apply_chat_template(talk[:-1], tokenize=False, add_generation_prompt=True)
        assert text == prompt + talk[-1]["content"] + codec.end
        ids = tokenizer.apply_chat_template(talk[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ids == codec.prompt(talk[:-1])


def test_a_date_is_fixed_and_bos_is_written():
    tokenizer = published.sentencepiece(published.DATED, special=published.MARKERS)
    codec = Codec(tokenizer, date="2020-02-03")
    assert codec.adds_bos
    text = scoring_template(codec)
    tokenizer.chat_template = text
    rendered = tokenizer.apply_chat_template(TALKS[0], tokenize=False)
    assert rendered.startswith("<s><|im_start|>system\n03 Feb 2020<|im_end|>")
    ids = tokenizer.apply_chat_template(TALKS[0][:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == codec.prompt(TALKS[0][:-1])
