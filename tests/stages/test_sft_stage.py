import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from trl.trainer import utils as trl_utils

from data.schema import write_jsonl
from pipeline.config.sft import SFTConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError, StageError
from stages import sft
from stages.models.adapters import load_policy
from stages.models.loading import load_backbone
from stages.models.text import IGNORED

FAST = {"per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2}


@pytest.fixture
def inputs(tmp_path):
    return {
        "base": tiny.base_artifact(tmp_path / "base"),
        "data": tiny.data_artifact(tmp_path / "data", train=16),
    }


def config(**values):
    trainer = FAST | values.pop("trainer", {})
    return SFTConfig(**({"lora": tiny.LORA, "max_length": 40, "trainer": trainer} | values))


def run(inputs, out, ctx, **values):
    out.mkdir()
    return Artifact("sft", out, "sft"), sft.run(config(**values), inputs, out, ctx)


def documents(inputs, split="train"):
    return sft.encode_demonstrations(inputs["data"], tiny.codec(), split, 40)[0]


def test_labels_are_on_the_completion_only(inputs):
    codec = tiny.codec()
    demonstrations = [d for d in inputs["data"].jsonl("demonstrations.jsonl") if d["split"] == "train"]
    for row, demonstration in zip(documents(inputs), demonstrations, strict=True):
        prompt = demonstration["prompt"][0]["content"] + "\n"
        text = codec.tokenizer.decode([i for i in row["labels"] if i != IGNORED])
        assert text == demonstration["completion"] + "<eos>"
        assert row["labels"].count(IGNORED) == len(prompt)
        assert codec.tokenizer.decode(row["input_ids"]) == prompt + text
        assert row["input_ids"][len(prompt) :] == row["labels"][len(prompt) :]


def test_long_demonstrations_are_left_out_and_counted(inputs):
    every = documents(inputs)
    limit = sorted(len(row["input_ids"]) for row in every)[7]
    kept, left_out = sft.encode_demonstrations(inputs["data"], tiny.codec(), "train", limit)
    assert kept == [row for row in every if len(row["input_ids"]) <= limit]
    assert left_out.total == len(every) - len(kept) > 0
    assert left_out.longest == max(len(row["input_ids"]) for row in every)


def test_each_split_has_a_line_about_what_is_too_long(inputs, tmp_path, training_context):
    lengths = {
        split: sorted(len(row["input_ids"]) for row in documents(inputs, split)) for split in ("train", "eval")
    }
    limit = min(lengths["train"][-2], lengths["eval"][-2]) - 1
    ctx, notes = training_context()
    _, metrics = run(inputs, tmp_path / "out", ctx, max_length=limit, trainer={"max_steps": 1})
    for prefix, split, words in (("", "train", "training"), ("eval_", "eval", "held-out")):
        count = sum(length > limit for length in lengths[split])
        assert count
        assert metrics[f"{prefix}dropped_demonstrations/longer than max_length"] == count
        keeps = -(-lengths[split][-1] // 8) * 8
        assert (
            f"sft: {count} of {len(lengths[split])} {words} demonstrations left out: prompt and answer longer than "
            f"sft.max_length = {limit} tokens (the longest has {lengths[split][-1]}). "
            f"{keeps} keeps all; {100 * count / len(lengths[split]):.1f} % are lost."
        ) in notes.lines


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "unpacked"])
def test_documents_of_a_row_do_not_see_each_other(inputs, tmp_path, training_context, monkeypatch, packing):
    """The trainer's loss over all its batches is the mean over labels of each document read alone."""
    trainers = []

    def keep(trainer, *_):
        trainer.state.log_history.append({"train_loss": 0.0})
        trainers.append(trainer)
        return {}

    monkeypatch.setattr(sft, "train_to_end", keep)
    run(
        inputs,
        tmp_path / "out",
        training_context()[0],
        packing=packing,
        trainer={"average_tokens_across_devices": False},
    )
    (trainer,) = trainers
    total, count, batches = 0.0, 0, 0
    for examples in trainer.get_train_dataloader():
        batch = trainer.data_collator(examples)
        labels = int((batch["labels"] != IGNORED).sum())
        with torch.no_grad():
            total += float(trainer.compute_loss(trainer.model, dict(batch))) * labels
        count += labels
        batches += 1
    assert batches < 4 if packing else batches == 4

    model = load_backbone(inputs["base"], "cpu")  # a fresh adapter changes nothing
    expected, labels = 0.0, 0
    for row in documents(inputs):
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([row["input_ids"]])).logits[0].double(), -1)
        for position, label in enumerate(row["labels"]):
            if label != IGNORED:
                expected -= float(logp[position - 1, label])
                labels += 1
    assert count == labels
    assert total / count == pytest.approx(expected / labels, rel=1e-5)


@pytest.mark.parametrize("lora", [tiny.LORA, None], ids=["lora", "full"])
def test_it_learns_and_can_be_loaded(inputs, tmp_path, training_context, lora):
    ctx, notes = training_context()
    trainer = {"num_train_epochs": 10, "learning_rate": 5e-2 if lora else 1e-2}
    artifact, metrics = run(inputs, tmp_path / "out", ctx, lora=lora, trainer=trainer)
    losses = [values["loss"] for _, values in notes.logged if "loss" in values]
    assert losses[-1] < 0.8 * losses[0]
    assert (metrics["demonstrations"], metrics["dropped_demonstrations"]) == (16, 0)
    policy = load_policy(inputs["base"], artifact, "cpu")
    total, count = 0.0, 0
    for row in documents(inputs, "eval"):
        with torch.no_grad():
            logits = policy(torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != IGNORED).sum())
    assert metrics["eval_loss"] == pytest.approx(total / count, rel=1e-4)
    assert not any(p.requires_grad for p in policy.parameters())


def test_every_part_of_the_adapter_starts_to_learn(inputs, tmp_path, training_context):
    artifact, _ = run(inputs, tmp_path / "out", training_context()[0], trainer={"max_steps": 2})
    state = load_file(artifact.file("adapter") / "adapter_model.safetensors")
    assert len(state) == 2 * 7 * 2
    for name, tensor in state.items():
        assert tensor.any(), f"{name} is zero"
        assert tensor.dtype == torch.float32


class Killed(Exception):
    pass


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "unpacked"])
def test_resume_from_the_newest_complete_checkpoint(inputs, tmp_path, training_context, packing):
    values = {"packing": packing, "trainer": {"max_steps": 6, "save_steps": 2}}
    ctx, _ = training_context(state="whole")
    whole, _ = run(inputs, tmp_path / "whole out", ctx, **values)

    ctx, notes = training_context(state="cut")
    log = notes.log

    def die(step, **numbers):
        log(step, **numbers)
        if step == 5:
            raise Killed

    notes.log = die
    with pytest.raises(Killed):
        run(inputs, tmp_path / "cut out", ctx, **values)
    half_written = ctx.state_dir / "checkpoint-5"
    half_written.mkdir()
    (half_written / "adapter_model.safetensors").write_bytes(b"half")

    ctx, notes = training_context(state="cut")
    resumed, _ = run(inputs, tmp_path / "resumed out", ctx, **values)
    assert notes.lines == ["resuming from step 4"]
    assert notes.truncated == [4]
    assert notes.bars["sft"] == 6
    assert [step for step, _ in notes.logged][:2] == [5, 6]
    assert not half_written.exists()
    name = "adapter/adapter_model.safetensors"
    assert resumed.file(name).read_bytes() == whole.file(name).read_bytes()


def test_without_a_complete_checkpoint_it_starts_afresh(inputs, tmp_path, training_context):
    ctx, notes = training_context()
    (ctx.state_dir / "checkpoint-2").mkdir()
    run(inputs, tmp_path / "out", ctx, trainer={"max_steps": 1})
    assert notes.lines == []
    assert notes.bars["sft"] == 1


def test_nothing_that_fits(inputs, tmp_path, training_context):
    with pytest.raises(DataError, match=r"sft: 16 of 16 training demonstrations left out: .*sft\.max_length = 4 "):
        run(inputs, tmp_path / "out", training_context()[0], max_length=4)


@pytest.mark.parametrize("trainer", [{"learning_rte": 1.0}, {"lr_scheduler_type": "bogus"}])
def test_a_trainer_value_that_is_wrong(inputs, tmp_path, training_context, trainer):
    with pytest.raises(StageError, match="invalid trainer values"):
        run(inputs, tmp_path / "out", training_context()[0], trainer=trainer)


def test_a_truncated_base_is_refused(inputs, tmp_path, training_context):
    path = inputs["base"].file("model") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StageError, match="checkpoint cannot be loaded"):
        run(inputs, tmp_path / "out", training_context()[0])


def test_a_base_without_its_model_is_refused(inputs, tmp_path, training_context):
    (inputs["base"].path / "base.json").write_text(
        json.dumps({"model": str(tmp_path / "gone"), "revision": None, "dtype": "auto", "quantization": "none"})
    )
    with pytest.raises(StageError, match="checkpoint cannot be loaded"):
        run(inputs, tmp_path / "out", training_context()[0])


def as_conversations(inputs, *before):
    """Puts turns before each demonstration's prompt."""
    path = inputs["data"].path / "demonstrations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_jsonl(path, [row | {"prompt": [*before, *row["prompt"]]} for row in rows])


def first_loss(inputs, out, training_context, **values):
    ctx, notes = training_context(state=f"{out.name} state")
    trainer = {"per_device_train_batch_size": 16, "max_steps": 1}
    _, metrics = run(inputs, out, ctx, packing=False, trainer=trainer, **values)
    return next(values["loss"] for _, values in notes.logged if "loss" in values), metrics


def mean_loss(inputs, spans):
    """Nats per token of the base model over parts of each demonstration's text, `spans(text)`."""
    model, total, count = load_backbone(inputs["base"], "cpu"), 0.0, 0
    for row in documents(inputs):
        text = tiny.codec().tokenizer.convert_ids_to_tokens(row["input_ids"])
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([row["input_ids"]])).logits[0].double(), -1)
        for position in spans(text):
            total -= float(logp[position - 1, row["input_ids"][position]])
            count += 1
    return total / count, count


def test_assistant_only_loss_covers_every_answer_of_a_conversation(inputs, tmp_path, training_context):
    """The plain template writes `hi`, a line break, `dog` and EOS before each prompt."""
    as_conversations(inputs, *tiny.user("hi"), {"role": "assistant", "content": "dog"})
    on, metrics = first_loss(inputs, tmp_path / "on", training_context, assistant_only_loss=True)
    off, other = first_loss(inputs, tmp_path / "off", training_context)

    def last(text):
        return range(text.index("\n", 7) + 1, len(text))

    expected, count = mean_loss(inputs, last)
    assert off == pytest.approx(expected, rel=1e-4)
    every, count_on = mean_loss(inputs, lambda text: [3, 4, 5, 6, *last(text)])
    assert on == pytest.approx(every, rel=1e-4)
    assert count_on == count + 4 * 16
    assert metrics["assistant_turns"] == 32
    assert "assistant_turns" not in other


def test_assistant_only_loss_changes_nothing_for_single_answers(inputs):
    kept, _ = sft.encode_demonstrations(inputs["data"], tiny.codec(), "train", 40, every_turn=True)
    assert kept == documents(inputs)


def test_a_demonstration_whose_answer_the_template_changes_is_left_out(inputs, tmp_path, training_context):
    """The probes have no such text, so only the row shows it."""
    template = "{% for m in messages %}{{ m.content.split('cut')[-1] + '\n' }}{% endfor %}"
    (inputs["base"].path / "tokenizer/chat_template.jinja").write_text(template)
    as_conversations(inputs, *tiny.user("hi"), {"role": "assistant", "content": "dog"})
    path = inputs["data"].path / "demonstrations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["prompt"][1]["content"] = "a cut dog"
    write_jsonl(path, rows)
    ctx, notes = training_context()
    _, metrics = run(inputs, tmp_path / "out", ctx, assistant_only_loss=True, trainer={"max_steps": 1})
    assert metrics["dropped_demonstrations/an assistant's turn that the chat template changes"] == 1
    assert metrics["demonstrations"] == 15
    assert (
        "sft: 1 of 16 training demonstrations left out: an assistant's turn that the chat template changes. To use "
        "them: set sft.assistant_only_loss to false."
    ) in notes.lines


def test_a_template_that_does_not_show_the_turns_is_refused(inputs, tmp_path, training_context):
    template = (
        "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}so: {% endif %}"
    )
    (inputs["base"].path / "tokenizer/chat_template.jinja").write_text(template)
    with pytest.raises(StageError, match="differently once the answer is there") as refusal:
        run(inputs, tmp_path / "out", training_context()[0], assistant_only_loss=True)
    assert "set sft.assistant_only_loss to false" in refusal.value.hint


def test_only_positions_with_labels_reach_the_output_layer(inputs, tmp_path, training_context, monkeypatch):
    positions, original = [], trl_utils._ChunkedLogProbFunction

    class Counting:
        @staticmethod
        def apply(hidden, *args):
            positions.append(len(hidden))
            return original.apply(hidden, *args)

    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", Counting)
    run(inputs, tmp_path / "out", training_context()[0], trainer={"num_train_epochs": 1})
    rows = documents(inputs) + documents(inputs, "eval")
    assert sum(positions) == sum(label != IGNORED for row in rows for label in row["labels"])
