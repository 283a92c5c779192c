"""What the `base` stage finds out about chat template and stop tokens, and records for every other stage."""

import published
import pytest
import tiny
from transformers import AutoTokenizer, GenerationConfig

from pipeline.config.base import BaseConfig
from pipeline.config.fit import ModelProfile
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.base import stage as base
from stages.models.text import load_codec


@pytest.fixture
def make(tmp_path, training_context):
    """Runs the stage on a tiny model with this tokenizer; returns artifact, metrics and what was said."""

    def run(tokenizer, stops=None, **values):
        folder = tmp_path / "model"
        model = tiny.lm(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
        if stops is not None:
            model.generation_config = GenerationConfig(eos_token_id=stops)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        out = tmp_path / "out"
        out.mkdir()
        ctx, notes = training_context()
        metrics = base.run(BaseConfig(model=str(folder), check_tokens=2, **values), {}, out, ctx)
        return Artifact("base", out, "base"), metrics, notes.lines

    return run


@pytest.mark.parametrize("stops", [None, 5, [5, 7]])
def test_stop_tokens_are_those_of_template_tokenizer_and_generation_config(make, stops):
    tokenizer = published.byte_level()
    artifact, metrics, _ = make(tokenizer, stops)
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    expected = ends | set([stops] if isinstance(stops, int) else stops or [])
    assert artifact.json("base.json")["stop_ids"] == sorted(expected)
    assert load_codec(artifact).stop_ids == expected
    assert metrics["stop_tokens"].split() == tokenizer.convert_ids_to_tokens(sorted(expected))


def test_what_the_recipe_says_of_text_holds_in_every_stage(make):
    artifact, _, lines = make(
        published.gemma(),
        fold_turns=True,
        control_tokens="tokens",
        template_date="2031-03-05",
    )
    codec = load_codec(artifact)
    assert (codec.template.folds, codec.literal, codec.date) == (True, False, "2031-03-05")
    assert "the chat template has no system turn: system text is moved into the first user turn" in lines
    profile = ModelProfile.read(artifact.path)
    assert profile is not None
    assert profile.no_system == "System role not supported"


def test_the_date_is_said_once_and_the_template_kept(make):
    artifact, _, lines = make(published.byte_level(published.DATED), template_date="2031-03-05")
    assert (
        lines.count("the chat template includes the date, fixed to 2031-03-05 in every stage (base.template_date)")
        == 1
    )
    codec = load_codec(artifact)
    assert "05 Mar 2031" in codec.tokenizer.decode(codec.prompt(tiny.user("a")))
    assert AutoTokenizer.from_pretrained(artifact.file("tokenizer")).chat_template == published.DATED


def test_a_named_template_is_used_and_the_published_ones_are_kept(make):
    named = {"default": published.CHATML, "dated": published.DATED}
    artifact, _, _ = make(published.byte_level(named), chat_template="dated")
    assert load_codec(artifact).template.source == published.DATED
    kept = AutoTokenizer.from_pretrained(artifact.file("tokenizer")).chat_template
    assert kept == named | {"default": published.DATED, "published": published.CHATML}


def test_a_bos_that_the_template_forgets_is_said(make):
    _, _, lines = make(published.sentencepiece(published.CHATML, special=published.MARKERS))
    assert any("omits <s>" in line for line in lines)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"rag": published.CHATML, "tool_use": published.CHATML}, "none of them is the default"),
        ("{% for m in messages %}{{ m.content }}", "syntax error"),
        ("{{ raise_exception('never') }}", "refuses a question with its answer: never"),
        ("{{ messages[-1].content }}", "leaves out the text"),
        (published.CHATML.partition("{% if add_generation_prompt")[0], "ignores add_generation_prompt"),
    ],
    ids=["no default", "syntax", "refuses", "loses text", "no generation prompt"],
)
def test_a_template_that_cannot_be_trained_with_is_refused(make, template, message):
    with pytest.raises(StageError, match=message):
        make(published.byte_level(template))


THINKS = published.CHATML.replace(
    "<|im_start|>assistant\n' }}", "<|im_start|>assistant\n' }}{% if thinks is false %}{{ 'No' }}{% endif %}"
)


@pytest.mark.parametrize("template", [THINKS, {"default": THINKS, "other": published.CHATML}], ids=["one", "named"])
def test_values_of_the_templates_variables_hold_in_every_stage_and_in_the_exported_tokenizer(make, template):
    artifact, _, _ = make(published.byte_level(template), chat_template_kwargs={"thinks": False})
    codec, messages = load_codec(artifact), tiny.user("hi")
    assert codec.decode(codec.prompt(messages)[-2:]).endswith("No")
    tokenizer = AutoTokenizer.from_pretrained(artifact.file("tokenizer"))
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("assistant\nNo")
    assert artifact.json("base.json")["chat_template_kwargs"] == {"thinks": False}
    if isinstance(template, dict):
        assert tokenizer.chat_template["other"] == published.CHATML


def test_without_values_the_artifact_does_not_mention_them(make):
    artifact, _, _ = make(published.byte_level())
    assert "chat_template_kwargs" not in artifact.json("base.json")
    assert "no_turns" not in artifact.json("profile.json")


def test_an_unknown_variable_of_the_template_is_refused(make):
    with pytest.raises(StageError, match="the chat template has no variable think") as refusal:
        make(published.byte_level(THINKS), chat_template_kwargs={"think": False})
    assert refusal.value.hint == "did you mean thinks?"


def test_a_template_that_does_not_show_the_assistants_turns_is_recorded(make):
    artifact, _, _ = make(published.byte_level(THINKS), chat_template_kwargs={"thinks": False})
    profile = ModelProfile.read(artifact.path)
    assert profile is not None
    assert "differently once the answer is there" in profile.no_turns
