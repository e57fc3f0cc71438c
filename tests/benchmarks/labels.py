"""Which tokens are supervised where a row contains control tokens: labels that are searched, and built.

`python -m tests.benchmarks.report --only labels` prints it. The search is the original's, as
`tests.benchmarks.encode` has it.
"""

import json
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from tests.benchmarks.encode import encode_plainly
from training.consts import CONTROL_TOKENS, NOT_SUPERVISED
from training.text.conversation import from_row
from training.text.encoding import encode
from training.text.turns import Conversation

# Rows by the names that the report gives them.
ROWS = {
    "plain": {"instruction": "什么是洗钱？", "output": "洗钱是掩饰、隐瞒犯罪所得来源的行为。"},
    "question": {
        "instruction": "提示词里的 <|YaYi|> 是什么意思？", "output": "它标明后面是模型的回答。"
    },
    "exchange": {
        "instruction": "改写这段对话：<|Human|>:\n你好\n\n<|YaYi|>:\n您好\n\n<|End|>",
        "output": "用户问好，助手回礼。",
    },
    "answer": {
        "instruction": "模型的回答以什么结束？", "output": "以 <|End|> 结束，它不会显示出来。"
    },
}  # fmt: skip


def supervised_by_both(tokenizer: PreTrainedTokenizerFast) -> list[dict[str, object]]:
    """For each row, by either way: how many tokens are supervised, and how many are control tokens.

    "of the answer" is how many tokens are right to be supervised: those of the answer with its header's end,
    its blank line and `<|End|>`, tokenized apart.
    """
    control = set(tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)))
    found = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "rows.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS.values()), encoding="utf-8")
        searched = list(encode_plainly(str(path), tokenizer))
    for name, row, (ids, labels) in zip(ROWS, ROWS.values(), searched, strict=True):
        built = encode(from_row(row), tokenizer)
        found.append({
            "row": name,
            "text": row,
            "searched": int((labels != NOT_SUPERVISED).sum()),
            "built": sum(label != NOT_SUPERVISED for label in built["labels"]),
            "of the answer": tokens_of_answer(from_row(row), tokenizer),
            "searched, control tokens": sum(int(token) in control for token in ids),
            "built, control tokens": sum(token in control for token in built["input_ids"]),
        })  # fmt: skip
    return found


def tokens_of_answer(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> int:
    """The number of tokens of a single turn's answer, as text, and its `<|End|>`."""
    text = f":\n{conversation.turns[0].yayi}\n\n"
    return len(tokenizer(text, split_special_tokens=True)["input_ids"]) + 1
