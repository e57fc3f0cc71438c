import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from evaluation import perplexity
from tests.conftest import LEARNT, LEARNT_WITH_TOOLS, TOOLS, write_rows
from training.data.collate import collate
from training.model.load import load_model
from training.model.loss import Head
from training.model.save import save_model
from training.text.conversation import from_row
from training.text.encoding import encode
from training.text.tokenizer import load_tokenizer

ROWS = [
    *LEARNT,
    {"instruction": "【金融风控领域任务】什么是洗钱？", "output": "洗钱是……"},
    {"instruction": "【金融风控领域任务】你是谁", "output": "我是雅意。😀"},
]


@pytest.fixture(scope="module")
def llama(base: str, tmp_path_factory) -> str:
    tokenizer = load_tokenizer(base)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size))
    directory = tmp_path_factory.mktemp("llama") / "model"
    save_model(model, tokenizer, directory)
    return str(directory)


def plain_losses(model_path: str, rows: list[dict]) -> tuple[float, int]:
    """The summed loss and the supervised tokens, a row at a time by transformers alone."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        load_tokenizer(model_path),
    )
    loss, supervised = 0.0, 0
    for row in rows:
        encoded = encode(from_row(row), tokenizer)
        count = sum(label != -100 for label in encoded["labels"])
        with torch.no_grad():
            batch = {name: torch.tensor([ids]) for name, ids in encoded.items()}
            loss += model(**batch).loss.item() * count
        supervised += count
    return loss, supervised


@pytest.mark.parametrize("which", ["tuned", "llama"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_losses_by_domain_are_those_of_plain_transformers(
    outcome, request, which: str, batch_size: int, tmp_path: Path
) -> None:
    model = request.getfixturevalue(which)
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    status, out, _ = outcome(
        perplexity.main,
        f"--model {model} --device cpu --dtype float32 --data-path {rows} --output {tmp_path / 'out'} "
        f"--batch-size {batch_size}",
    )
    assert status == 0
    domains = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["domains"]
    assert list(domains) == ["all", "none", "金融风控领域任务"]
    for domain, part in (("all", ROWS), ("none", ROWS[:4]), ("金融风控领域任务", ROWS[4:])):
        loss, supervised = plain_losses(model, part)
        answers = [turn.yayi for row in part for turn in from_row(row).turns]
        figures = domains[domain]
        assert (figures["rows"], figures["tokens"]) == (len(part), supervised)
        assert figures["loss"] == pytest.approx(loss / supervised, rel=1e-4, abs=1e-5)
        assert figures["perplexity"] == pytest.approx(math.exp(loss / supervised), rel=1e-3)
        assert figures["loss_per_character"] == pytest.approx(
            loss / sum(map(len, answers)), rel=1e-4, abs=1e-5
        )
        assert f"| {domain} | {model} | {len(part)} | {supervised} | {figures['loss']:.4f} |" in out


def test_what_is_not_read_or_not_learnt_does_not_count_and_is_said(
    outcome, tuned: str, tmp_path: Path
) -> None:
    user = {"role": "user", "content": "你是谁"}
    answers = [
        {"role": "assistant", "content": text, "loss": loss} for text, loss in (("前", 0), ("我是", 1))
    ]
    row = {"messages": [user, answers[0], user, answers[1], user], "note": "x", "id": 7}
    bad = {"instruction": "你是谁", "output": "不知道", "label": False, "source": "feedback"}
    rows = write_rows(tmp_path / "rows.jsonl", [row, bad])
    arguments = f"--model {tuned} --device cpu --data-path {rows} --output {tmp_path / 'out'}"
    status, _, err = outcome(perplexity.main, arguments)
    assert status == 0
    assert f"ends with the human, whose last message is left off: 1 row ({rows}:1)\n" in err
    assert f'not learnt: "note" in 1 row ({rows}:1)\n' in err
    assert "bookkeeping, not learnt: id: 1\n" in err
    assert f"{rows}: left out, feedback that calls the answer a bad one: 1 row\n" in err
    figures = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["domains"]["all"]
    assert figures["characters"] == len("我是")


def test_a_dialogue_is_cut_to_the_context_as_in_training(outcome, tuned: str, tmp_path: Path) -> None:
    """The rows are those that a run writes as held_out.jsonl, where a row is uncut."""
    first = [{"role": "user", "content": "你是谁"}, {"role": "assistant", "content": "我是"}]
    second = [{"role": "user", "content": "再说"}, {"role": "assistant", "content": "长" * 9000}]
    figures = []
    for name, rows in (("long", [first + second, first]), ("short", [first, first])):
        path = write_rows(tmp_path / f"{name}.jsonl", [{"messages": messages} for messages in rows])
        arguments = f"--model {tuned} --device cpu --data-path {path} --output {tmp_path / name}"
        status, _, err = outcome(perplexity.main, arguments)
        assert status == 0
        assert (f"of the model's context: 1 row ({path}:1)\n" in err) == (name == "long")
        figures.append(json.loads((tmp_path / name / "result.json").read_text("utf-8"))["domains"])
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "a"}, ':2: "output" is missing'),
        (
            {"instruction": "a", "output": "长" * 9000},
            ":2: its first supervised answer does not end within the 2,048 tokens of the model's context",
        ),
        (
            {"tools": TOOLS, "messages": LEARNT_WITH_TOOLS[0]},
            ":2: a row with tools, and the model was taught none",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(outcome, tuned: str, tmp_path: Path, row, message: str) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [LEARNT[0], row])
    arguments = f"--model {tuned} --device cpu --data-path {rows} --output {tmp_path / 'out'}"
    status, _, err = outcome(perplexity.main, arguments)
    assert status == 2
    assert f"error: {rows}{message}" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_loss_that_is_no_number_is_no_result(outcome, tuned: str, tmp_path: Path, monkeypatch) -> None:
    def broken(options, allow_untaught):
        model, tokenizer = load_from_options(options, allow_untaught=allow_untaught)
        model.transformer.ln_f.weight.data.fill_(float("nan"))
        return model, tokenizer

    load_from_options = perplexity.load_from_options
    monkeypatch.setattr(perplexity, "load_from_options", broken)
    rows = write_rows(tmp_path / "rows.jsonl", LEARNT)
    arguments = f"--model {tuned} --device cpu --data-path {rows} --output {tmp_path / 'out'}"
    status, _, err = outcome(perplexity.main, arguments)
    assert status == 2
    assert "the loss is NaN or infinite" in err


def test_memory_that_runs_out_is_one_line(outcome, tuned: str, tmp_path: Path, monkeypatch) -> None:
    def too_large(*args) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Head, "forward", too_large)
    rows = write_rows(tmp_path / "rows.jsonl", LEARNT)
    arguments = f"--model {tuned} --device cpu --data-path {rows} --output {tmp_path / 'out'} --batch-size 3"
    status, _, err = outcome(perplexity.main, arguments)
    assert status == 2
    assert err.endswith("error: --batch-size 3: the memory does not suffice; give a smaller one\n")


def test_the_loss_is_computed_where_the_last_block_of_a_spread_model_is(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands in for the second of two cards, which has the last block and the head."""
    model = load_model(base, load_tokenizer(base), dtype=torch.float32)
    run_blocks = model._run_blocks
    monkeypatch.setattr(model, "_run_blocks", lambda *args: run_blocks(*args).to("meta"))
    model.lm_head = Head(model.config.hidden_size, model.config.vocab_size, bias=False, device="meta")
    batch = collate([{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}])
    targets = []
    monkeypatch.setattr(
        Head, "forward", lambda head, hidden, wanted, rows: targets.append(wanted) or hidden.sum()
    )
    loss = model(**batch, num_items_in_batch=1).loss
    assert (loss.device.type, targets[0].device.type, len(targets[0])) == ("meta", "meta", 2)
