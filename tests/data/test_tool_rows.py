"""Data with tools: what decides the fifth control token, and what tells rows with tools apart."""

import importlib.util
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from transformers.utils import get_json_schema

from tests.conftest import LEARNT_WITH_TOOLS, ROOT, SINGLE_TURN, TOOLS, write_rows
from training import check, trainer
from training.common.errors import UserError
from training.consts import TOOL
from training.data.duplicates import row_hashes
from training.data.encoded import RowOptions, read_conversations
from training.data.tool_rows import has_tools
from training.model.load import ROW_MULTIPLE, load_model
from training.model.save import save_model
from training.run.record import RECORD
from training.text.calls import call_text, declaration, error_text, read_call, result_text
from training.text.conversation import Conversation, Turn
from training.text.tokenizer import load_tokenizer_and_new_tokens
from training.text.turns import ToolUse
from training.tiny_bloom import random_bloom

SAMPLE = ROOT / "data" / "yayi_train_example_tools.json"

WITH_TOOLS = [{"messages": messages, "tools": TOOLS} for messages in LEARNT_WITH_TOOLS]
PLAIN = {"instruction": "q", "output": "a"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (json.dumps(WITH_TOOLS[2]), True),  # declared, and not called
        (json.dumps(WITH_TOOLS[2]).replace('"tools"', '"\\u0074ools"'), True),
        (json.dumps(WITH_TOOLS[2] | {"tools": []}), False),
        (json.dumps({"messages": WITH_TOOLS[0]["messages"][:1], "tools": TOOLS}), False),  # nothing to learn
        (json.dumps(PLAIN | {"tools": TOOLS}), False),  # cannot be used
        (json.dumps({"instruction": 'What is "tools"?', "output": "a"}), False),
        ("[" + json.dumps(WITH_TOOLS[0]) + "]", True),
        ("{", False),
    ],
)
def test_data_has_tools_where_a_row_that_can_be_learnt_from_does(
    tmp_path: Path, line: str, expected: bool
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(line + "\n")
    assert has_tools(str(path), RowOptions()) is expected


def test_rows_that_differ_only_in_tools_calls_or_results_are_different() -> None:
    def use(call: str = "a", result: str = "r", text: str = "") -> tuple[ToolUse, ...]:
        return (ToolUse((call_text(call, {}),), (result,), text),)

    tools = tuple(declaration({"name": name}) for name in "ab")
    turns = [Turn("q", "x", tool_uses=uses) for uses in ((), use(), use("b"), use(result="s"), use(text="t"))]
    conversations = [Conversation((turn,), "", tools) for turn in turns]
    conversations += [Conversation((turns[1],), "", tools[:1]), Conversation((turns[0],))]
    hashes = [row_hashes(conversation) for conversation in conversations]
    assert len({one.row for one in hashes}) == len(hashes)
    # A question is on one side of the split whatever the tools returned; another call is another answer.
    assert len({one.prompts[0] for one in hashes[:5]}) == 1
    assert hashes[1].answers == hashes[3].answers != hashes[2].answers


def test_the_check_counts_what_rows_with_tools_have(outcome, base: str, tmp_path: Path) -> None:
    unanswered = {"messages": WITH_TOOLS[2]["messages"] + WITH_TOOLS[0]["messages"][:3], "tools": TOOLS}
    path = write_rows(tmp_path / "rows.jsonl", [*WITH_TOOLS, unanswered, PLAIN])
    status, out, _ = outcome(check.main, f"--data-path {path} --input-model {base} --json")
    summary = json.loads(out)
    assert (status, summary["formats"]) == (0, {"messages": 4, "instruction": 1})
    assert summary["notes"]["results"] == {"count": 1, "lines": [[4]]}
    assert "open" not in summary["notes"]
    assert summary["not_learnt"] == {}


def test_a_run_gives_the_fifth_token_to_its_model_and_keeps_what_it_began_with(
    base: str, tmp_path: Path, capsys
) -> None:
    def run(name: str, more: str = "") -> dict:
        arguments = (
            f"--data-path {tmp_path / 'rows.jsonl'} --input-model {base} --cache-dir {tmp_path / 'cache'} "
            f"--run-name {name} --no-bf16 --local-output-dir {tmp_path} --test-size 0 --save-steps 1 {more}"
        )
        trainer.main.main(arguments.split(), standalone_mode=False)
        return json.loads((tmp_path / name / RECORD).read_text())

    write_rows(tmp_path / "rows.jsonl", WITH_TOOLS)
    assert run("tools", "--max-steps 1")["tools"] is True
    assert f"rows with tools; the model has a fifth control token, {TOOL}" in capsys.readouterr().out
    saved = AutoTokenizer.from_pretrained(tmp_path / "tools" / "model")
    assert saved.convert_tokens_to_ids(TOOL) == len(load_tokenizer_and_new_tokens(base)[0])
    assert run("tools", "--max-steps 2 --resume")["tools"] is True

    write_rows(tmp_path / "rows.jsonl", [PLAIN] * 3)
    assert run("plain", "--max-steps 1")["tools"] is False
    assert TOOL not in AutoTokenizer.from_pretrained(tmp_path / "plain" / "model").get_vocab()
    write_rows(tmp_path / "rows.jsonl", [PLAIN, WITH_TOOLS[0], PLAIN])
    with pytest.raises(UserError, match=r"rows\.jsonl:2: a row with tools, and the model was taught none"):
        run("plain", "--max-steps 2 --resume --resume-anyway")


def test_a_model_with_a_row_for_each_token_grows_for_tools_and_its_rows_stay(
    base: str, tmp_path: Path
) -> None:
    """As yayi-7b does, which has 250,684 rows."""
    plain, _ = load_tokenizer_and_new_tokens(base)
    saved = random_bloom(len(plain))
    save_model(saved, plain, tmp_path)
    taught, new_tokens = load_tokenizer_and_new_tokens(str(tmp_path), tools=True)
    assert new_tokens == {len(plain): []}
    loaded = load_model(str(tmp_path), taught, new_tokens=new_tokens).get_input_embeddings().weight
    assert len(loaded) == -(-(len(plain) + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
    assert loaded[: len(plain)].equal(saved.get_input_embeddings().weight)
    assert -(-250_685 // ROW_MULTIPLE) * ROW_MULTIPLE == 250_688


def test_the_sample_dialogues_are_what_the_sample_tools_return() -> None:
    spec = importlib.util.spec_from_file_location("tools_example", ROOT / "data" / "tools_example.py")
    functions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(functions)
    found = [value for name, value in vars(functions).items() if callable(value) and not name.startswith("_")]
    declared = {function.__name__: declaration(get_json_schema(function)) for function in found}
    conversations = [conversation for _, conversation in read_conversations(str(SAMPLE))]
    assert len(conversations) >= 40
    errors = 0
    for conversation in conversations:
        assert sorted(conversation.tools) == sorted(declared.values())
        for use in (use for turn in conversation.turns for use in turn.tool_uses):
            for call, result in zip(use.calls, use.results, strict=True):
                name, arguments = read_call(call)
                try:
                    expected = result_text(getattr(functions, name)(**arguments))
                except ValueError as error:
                    expected = error_text(str(error))
                    errors += 1
                assert result == expected
    turns = [turn for conversation in conversations for turn in conversation.turns]
    assert errors >= 3
    assert sum(len(turn.tool_uses) > 1 for turn in turns) >= 3
    assert sum(any(len(use.calls) > 1 for use in turn.tool_uses) for turn in turns) >= 3
    assert sum(not conversation.turns[0].tool_uses for conversation in conversations) >= 5
    for domain in ["媒体宣传", "舆情分析", "公共安全", "金融风控", "城市治理"]:
        named = [one for one in conversations if one.turns[0].human.startswith(f"【{domain}领域任务】")]
        assert sum(bool(one.turns[0].tool_uses) for one in named) >= 5
    # Who it is, it says as in the other file, with tools and without.
    [(_, who)] = [pair for pair in read_conversations(str(SINGLE_TURN)) if pair[1].turns[0].human == "你是谁"]
    assert who.turns in [one.turns for one in conversations]
