"""Published kinds of chat templates: named, dated, refusing turns, without a generation prompt."""

from datetime import datetime

import published
import pytest
import tiny
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from data.schema import Message
from pipeline.errors import StageError
from stages.models.templates import ChatTemplate, Refused, chat_template, check, fold, pinned
from stages.models.text import Codec

NAMED = {"default": published.CHATML, "rag": "{{ 'rag' }}" + published.CHATML, "plain": published.PHI3}


def turns(*roles: str) -> list[Message]:
    return [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]


def with_template(template):
    return published.byte_level(template)


# --- By name ---


def test_of_several_templates_the_default_is_used_and_all_are_kept(tmp_path):
    tokenizer = with_template(NAMED)
    tokenizer.chat_template = chat_template("auto", tokenizer)
    tokenizer.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.chat_template == NAMED
    assert Codec(read).prompt(tiny.user("a")) == Codec(with_template(published.CHATML)).prompt(tiny.user("a"))


def test_without_a_default_the_error_lists_the_names_and_the_recipes_line():
    tokenizer = with_template({"rag": "x", "tool_use": "y"})
    with pytest.raises(StageError, match="rag, tool_use") as caught:
        chat_template("auto", tokenizer, "base.chat_template (my.yaml:3)")
    assert "my.yaml:3" in str(caught.value)
    assert "base.chat_template: rag" in str(caught.value)
    with pytest.raises(StageError, match="rag, tool_use"):
        Codec(tokenizer)


def test_a_named_template_takes_precedence_and_the_published_ones_are_kept():
    tokenizer = with_template(NAMED)
    for name in ("rag", "plain"):
        chosen = chat_template(name, tokenizer)
        assert chosen == NAMED | {"default": NAMED[name], "published": NAMED["default"]}
    assert chat_template("default", tokenizer) == NAMED
    assert chat_template("chatml", tokenizer) == chat_template("chatml", tiny.tokenizer(None)), "one of ours"
    without = {name: NAMED[name] for name in ("rag", "plain")}
    assert chat_template("rag", with_template(without)) == without | {"default": NAMED["rag"]}
    with pytest.raises(StageError, match="no chat template 'rga'") as caught:
        chat_template("rga", tokenizer)
    assert "rag" in str(caught.value)


def test_a_template_file_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "t.jinja").write_bytes(b"\xff\xfe{")
    with pytest.raises(StageError, match="cannot be read"):
        chat_template(str(tmp_path / "t.jinja"), with_template(None))


# --- Templates that raise ---


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}{{ m.content }}", "{{ messages[0.content }}", "{{ messages | nofilter }}"]
)
def test_a_syntax_error_is_reported_with_its_line(template):
    with pytest.raises(StageError, match="syntax error, line 2: ") as caught:
        Codec(with_template(f"{{# one #}}\n\n{template}".replace("\n\n", "\n", 1)))
    assert caught.value.where == "base.chat_template"
    with pytest.raises(StageError, match="syntax error, line 2: "):
        Codec(with_template(f"{{{{ strftime_now('%d') }}}}\n{template}"))


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("raise_exception('No, thanks')", "No, thanks"),
        ("messages[0].nothing.at_all", "has no attribute"),
        ("messages[0].content + 1", "concatenate|str"),
        ("messages.append(1)", "unsafe|immutable|append"),
    ],
)
def test_any_exception_of_a_template_is_a_refusal_with_its_message(condition, words):
    inner = published.CHATML.replace("m.content", f"({condition} if m.content == 'user 1' else m.content)")
    template = ChatTemplate(with_template(inner))
    assert template.render(turns("user")) == "<|im_start|>user\nuser 0<|im_end|>\n"
    with pytest.raises(Refused, match=words):
        template.render(turns("user", "user"))


def test_a_template_that_refuses_any_answer_cannot_be_used():
    with pytest.raises(StageError, match="refuses a question with its answer: never"):
        Codec(with_template("{{ raise_exception('never') }}"))


def test_turns_that_a_template_refuses_are_refused_or_folded():
    template = ChatTemplate(published.gemma())
    for roles, words in (
        (["system", "user"], "System role"),
        (["user", "user"], "must alternate"),
        (["user", "assistant", "assistant", "user"], "must alternate"),
    ):
        with pytest.raises(Refused, match=words):
            template.render(turns(*roles), generation=True)
    folding = ChatTemplate(published.gemma(), folds=True)
    conversation = turns("system", "user", "assistant", "assistant", "user", "user")
    assert folding.render(conversation, generation=True) == (
        "<bos><start_of_turn>user\nsystem 0\n\nuser 1<end_of_turn>\n"
        "<start_of_turn>model\nassistant 2\n\nassistant 3<end_of_turn>\n"
        "<start_of_turn>user\nuser 4\n\nuser 5<end_of_turn>\n<start_of_turn>model\n"
    )
    with pytest.raises(Refused, match="must alternate"):
        folding.render(turns("assistant", "user"))


def test_a_system_turn_is_kept_if_the_template_accepts_it():
    folding = ChatTemplate(published.byte_level(), folds=True)
    assert folding.render(turns("system", "user", "user")) == (
        "<|im_start|>system\nsystem 0<|im_end|>\n<|im_start|>user\nuser 1\n\nuser 2<|im_end|>\n"
    )
    assert fold(turns("user", "assistant", "user"), system=True) == turns("user", "assistant", "user")


def test_a_template_that_drops_system_text_is_not_followed_silently():
    dropping = published.CHATML.replace("messages %}", "messages if m.role != 'system' %}")
    template = ChatTemplate(with_template(dropping))
    assert not template.takes_system
    with pytest.raises(Refused, match="leaves out the text of a system turn"):
        template.render(turns("system", "user"))
    assert "system 0\n\nuser 1" in ChatTemplate(with_template(dropping), folds=True).render(turns("system", "user"))


# --- Dates ---


class Clock(datetime):
    today_is = datetime(2026, 11, 27)

    @classmethod
    def now(cls, tz=None):
        return cls.today_is


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    return Clock


def test_prompts_are_the_same_on_every_day(clock):
    tokenizer = with_template(published.DATED)
    prompts = []
    for day in (1, 2):
        clock.today_is = datetime(2026, 1, day)
        prompts.append(Codec(tokenizer).prompt(tiny.user("a")))
    assert prompts[0] == prompts[1]
    assert "26 Jul 2024" in tokenizer.decode(prompts[0])
    assert "05 Mar 2031" in tokenizer.decode(Codec(tokenizer, date="2031-03-05").prompt(tiny.user("a")))
    assert tokenizer.chat_template == published.DATED, "what is exported keeps its clock"


@pytest.mark.parametrize("day", ["2024-07-26", "2031-03-05", "2000-12-31"])
@pytest.mark.parametrize("text", ["", "\n", "  \n x", "{%- if true %}\n  {{ 'a' }}{% endif %}"])
def test_a_pinned_template_is_the_template_on_that_day(clock, day, text):
    """Compared with transformers' own clock, for every directive, including surrounding white space."""
    clock.today_is = datetime.fromisoformat(day)
    formats = ["%d %b %Y", "%-d. %B %y", "%A %a %w %j %U %W", "%H:%M:%S %p %I %f", "%c|%x|%X", "%%d 100%%", "%F %T"]
    source = text + "".join(f"{{{{ strftime_now('{f}') }}}}\n" for f in formats)
    source += "{% macro m() %}{{ strftime_now('%Y') }}{% endmacro %}{% for x in messages %}{{ m() }}{% endfor %}"
    source += "{% if strftime_now is defined %}{% set now = strftime_now('%m') %}{{ now + '!' }}{% endif %}"
    tokenizer = with_template(source)
    expected = tokenizer.apply_chat_template(tiny.user("a"), tokenize=False)
    clock.today_is = datetime(1999, 1, 1)
    rendered = tokenizer.apply_chat_template(tiny.user("a"), tokenize=False, chat_template=pinned(source, day))
    assert rendered == expected


def test_dates_are_detected_by_rendering():
    conditional = published.CHATML + "{% if tools %}{{ strftime_now('%Y') }}{% endif %}"
    for template, dated in ((published.DATED, True), (published.CHATML, False), (conditional, False)):
        assert ChatTemplate(with_template(template)).prints_date() == dated


# --- Generation prompts ---


def test_a_prompt_that_ends_before_the_assistants_turn_is_refused():
    bare = published.CHATML.partition("{% if add_generation_prompt")[0]
    with pytest.raises(StageError, match="ignores add_generation_prompt") as caught:
        check(ChatTemplate(with_template(bare)))
    assert "'<|im_start|>assistant\\n'" in str(caught.value)


@pytest.mark.parametrize("kind", published.KINDS)
def test_prompt_and_answer_are_the_conversation(kind):
    assert check(ChatTemplate(published.KINDS[kind]())) == []


def test_a_header_before_the_last_answer_only_is_reported():
    thinking = published.CHATML.replace("'\n' + m.content", "'\n' + ('<think></think>' if loop.last and m.role == "
                                        "'assistant' else '') + m.content")  # fmt: skip
    [line] = check(ChatTemplate(with_template(thinking)))
    assert "'<think></think>' before the last answer" in line


def test_a_conversation_that_does_not_continue_its_prompt_is_reported():
    other = published.CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>bot: '")
    [line] = check(ChatTemplate(with_template(other)))
    assert "bot: zAz" in line


@pytest.mark.parametrize(
    "template",
    ["{{ 'always the same' }}", "{{ messages[-1].content }}", "{{ messages[0].content }}"],
)
def test_a_template_that_loses_a_users_text_is_refused(template):
    with pytest.raises(StageError, match="leaves out the text of a user's turn"):
        check(ChatTemplate(with_template(template)))


# --- BOS and stop tokens ---


@pytest.mark.parametrize("kind", published.KINDS)
def test_a_prompt_has_one_bos_if_the_tokenizer_adds_it(kind):
    tokenizer = published.KINDS[kind]()
    codec = Codec(tokenizer)
    starts = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert starts == (kind != "GPT-2")
    for talk in (tiny.user("fox"), turns("user", "assistant", "user")):
        ids = codec.prompt(talk)
        assert ids.count(tokenizer.bos_token_id) == starts
        assert (ids[0] == tokenizer.bos_token_id) == starts
    assert not codec.adds_bos
    assert tokenizer.bos_token_id not in codec.completion("fox")[:-1]


def test_a_missing_bos_is_added_once():
    tokenizer = published.sentencepiece(published.CHATML, special=published.MARKERS)
    codec = Codec(tokenizer)
    rendered = tokenizer.apply_chat_template(tiny.user("fox"), tokenize=False, add_generation_prompt=True)
    assert codec.adds_bos
    assert codec.prompt(tiny.user("fox")) == tokenizer(rendered)["input_ids"]
    assert codec.prompt(tiny.user("fox")).count(tokenizer.bos_token_id) == 1


def tokens(tokenizer, ids):
    return {tokenizer.convert_ids_to_tokens(i) for i in ids}


def test_end_of_turn_tokens_before_eos_stop_too():
    phi = published.byte_level(published.PHI3, special=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"))
    codec = Codec(phi)
    assert phi.convert_ids_to_tokens(codec.end_id) == "<|end|>"
    assert tokens(phi, codec.stop_ids) == {"<|end|>", "<|endoftext|>"}
    assert codec.decode([*codec.encode("fox"), codec.end_id, *codec.encode("pub")]) == "fox"


def test_tokens_that_start_the_next_turn_are_no_stop_tokens():
    eager = published.byte_level(published.CHATML + "{% if not add_generation_prompt %}<|im_start|>{% endif %}")
    assert tokens(eager, Codec(eager).stop_ids) == {"<|im_end|>", "<|endoftext|>"}


@pytest.mark.parametrize("end", ["#", " over", "\n", ""])
def test_ordinary_text_after_an_answer_is_no_stop_token(end):
    plain = published.byte_level(f"{{% for m in messages %}}{{{{ m.content }}}}{end}{{% endfor %}}")
    codec = Codec(plain)
    assert codec.stop_ids == {codec.end_id} == {plain.eos_token_id}


def test_stop_tokens_of_the_model_are_added():
    gpt = published.byte_level()
    assert Codec(gpt, stop_ids=[7]).stop_ids == {7, *Codec(gpt).stop_ids}
    codec = Codec(gpt, stop_ids=[7])
    assert codec.ended_as_trained([5, 6, 7]) == [5, 6, codec.end_id]
    assert codec.ended_as_trained([5, 7, 6]) == [5, 7, 6]
    assert codec.ended_as_trained([]) == []
