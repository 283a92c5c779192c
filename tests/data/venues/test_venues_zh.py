"""The built-in task in Chinese: texts, judge and annotators."""

import random
from dataclasses import asdict

import pytest
import tiny
from repository import ROOT

from data.venues import task as venues
from data.venues.phrases import CHINESE
from data.venues.slots import SlotLexicon, parse_mr
from pipeline.config.data import TaskConfig
from pipeline.config.load import load_recipe
from pipeline.config.rank import AnnotatorConfig
from stages.base.stage import _train_tokenizer
from stages.models.templates import chat_template
from stages.models.text import Codec

CLEAN = {"task": "venues", "language": "zh", "size": 300, "missing": 0.0, "invented": 0.0, "repeated": 0.0}
RUBRIC = SlotLexicon.load("venues-zh")
PROMPT = "名称[蓝色狐狸], 类型[餐厅], 菜系[泰国菜], 位置[老城区]"
RIGHT = "蓝色狐狸是一家餐厅，主打泰国菜，位于老城区。"


def checks(**values):
    demonstrations = venues.demonstrations(TaskConfig(**(CLEAN | values)), 0, 0.1)
    return [RUBRIC.check(parse_mr(d.prompt[0]["content"]), d.completion) for d in demonstrations]


def test_a_clean_task_has_no_faults_by_its_rubric():
    assert all(check.errors == 0 and not check.repeated for check in checks())


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [("missing", {"missing"}), ("invented", {"invented", "wrong"}), ("repeated", {"repeated"})],
)
def test_each_configured_fault_appears(fault, kinds):
    for check in checks(**{fault: 1.0}):
        shown = {kind for kind in ("missing", "wrong", "invented", "repeated") if getattr(check, kind)}
        assert shown
        assert shown <= kinds


def test_the_judge_reads_chinese_without_spaces():
    def errors(text):
        return {name: value for name, value in asdict(RUBRIC.check(parse_mr(PROMPT), text)).items() if value}

    assert errors(RIGHT) == {"given": 4}
    assert errors("蓝色狐狸是一家餐厅,位于老城区。") == {"given": 4, "missing": ["菜系"]}
    assert errors(RIGHT.replace("老城区", "郊区")) == {"given": 4, "wrong": ["位置"]}
    assert errors(RIGHT + "这里欢迎儿童。") == {"given": 4, "invented": ["适合儿童"]}
    assert errors(RIGHT + "这里供应泰国菜。") == {"given": 4, "repeated": ["菜系"]}


@pytest.mark.parametrize(
    ("form", "text", "count"),
    [
        ("Thai", "Thailand, Thai", 1),
        ("泰国菜", "主打泰国菜和法国菜", 1),
        ("3星", "评分3星", 1),
        ("Blue Fox", "在Blue Fox吃饭", 1),
        ("Fox", "Blue Foxes在港口", 0),
        ("ไทย", "อาหารไทยแท้", 1),
        ("ラーメン", "美味しいラーメンです", 1),
        ("cafe", "a cafeteria or a cafe", 1),
    ],
)
def test_words_have_boundaries_only_in_scripts_with_spaces(form, text, count):
    lexicon = SlotLexicon.from_dict({"attributes": {"x": {"values": {"v": form}}}})
    assert sum(lexicon.stated({}, text)["x"].values()) == count


def test_annotators_read_the_language_of_the_prompt():
    annotator = AnnotatorConfig(name="ann", oversight=0.0, noise=0.0)
    prompt = [{"role": "user", "content": PROMPT}]
    texts = [RIGHT, "蓝色狐狸是一家餐厅。", RIGHT + "这里欢迎儿童。"]
    right, short, invented = venues.annotate(annotator, prompt, texts, random.Random(0))
    assert right > short
    assert right > invented
    longer = venues.annotate(
        AnnotatorConfig(name="talk", oversight=0.0, noise=0.0, verbosity=1.0), prompt, [RIGHT], random.Random(0)
    )
    assert longer[0] - right == pytest.approx(19 / 10)  # 19 characters without punctuation


def test_the_recipe_s_answers_and_prompts_fit(monkeypatch):
    """Its tokenizer, on its corpus: each character is a token, and nothing is cut, template and stop token
    included."""
    monkeypatch.chdir(ROOT)
    recipe = load_recipe("recipes/quickstart-zh.yaml").recipe
    corpus = venues.corpus(recipe.base.pretrain.corpus, recipe.seed, 0.1)[:4000]
    texts = [(d.prompt[0]["content"], d.completion) for d in corpus]
    tokenizer = _train_tokenizer([text for pair in texts for text in pair], recipe.base.pretrain)
    assert len(tokenizer) == 462 < recipe.base.pretrain.vocab_size, "nothing is left to merge"
    tokenizer.chat_template = chat_template("plain", tokenizer)
    codec = Codec(tokenizer)
    assert max(len(codec.completion(answer)) for _, answer in texts) == 54 <= recipe.ppo.response_length
    assert max(len(codec.prompt(tiny.user(prompt))) for prompt, _ in texts) <= recipe.ppo.max_prompt_length
    assert CHINESE.name in texts[0][0]
    assert tokenizer.decode(tokenizer(texts[0][1]).input_ids) == texts[0][1]
