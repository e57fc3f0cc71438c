"""EleutherAI's harness on a saved model: it scores the token ids of training, and finds what was learnt.

bash scripts/test_lm_eval.sh
"""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoTokenizer

from inference.generation import load
from tests.conftest import ROOT, write_rows
from tests.launching import run
from tests.pages import blocks
from training import trainer
from training.text.conversation import Conversation, Turn
from training.text.encoding import encode, encode_prompt

PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8")
[SNIPPET] = (block for block in blocks(PAGE, "python") if "harness" in block)
LETTERS = "ABCD"


class Question(NamedTuple):
    question: str
    options: tuple[str, str, str, str]
    answer: str

    @property
    def text(self) -> str:
        """What the task below makes of it."""
        options = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, self.options, strict=True))
        return f"{self.question}\n{options}答案："


QUESTIONS = [
    Question("太阳系中体积最大的行星是哪一颗？", ("土星", "木星", "海王星", "地球"), "B"),
    Question("食盐的主要成分是什么？", ("碳酸钙", "碳酸氢钠", "硫酸镁", "氯化钠"), "D"),
    Question("Which animal barks?", ("the dog", "the cat", "the cow", "the hen"), "A"),
    Question("面积最大的大洋是哪一个？", ("大西洋", "印度洋", "太平洋", "北冰洋"), "C"),
    Question("谁改进了造纸术？", ("张衡", "张仲景", "华佗", "蔡伦"), "D"),
    Question("Which number is even?", ("(3)", "(4)", "(5)", "(7)"), "B"),
    Question("What ends an answer?", ("<|Human|>", "</s>", "<|End|>", "<|YaYi|>:\n"), "C"),
    Question("水的沸点是多少摄氏度？", ("100", "90", "80", "70"), "A"),
    Question("Which word is a colour?", ("run", "slow", "red", "seven"), "C"),
    Question("一年有几个季节？", ("三个", "四个", "五个", "六个"), "B"),
]

# What stands before the questions of the second task.
SHOWN = [
    Question("一周有几天？", ("五天", "六天", "七天", "八天"), "C"),
    Question("Which of these is a fruit?", ("apple", "stone", "river", "chair"), "A"),
]

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
    dev: {shown}
test_split: test
fewshot_split: dev
fewshot_config:
  sampler: first_n
num_fewshot: {num_fewshot}
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nA. {{{{A}}}}\\nB. {{{{B}}}}\\nC. {{{{C}}}}\\nD. {{{{D}}}}\\n答案："
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: "{{{{['A', 'B', 'C', 'D'].index(answer)}}}}"
metric_list:
  - metric: acc
"""


def write_tasks(directory: Path) -> None:
    """A task that asks the questions alone, and one that shows two others first, with their answers."""

    def write_questions(name: str, questions: list[Question]) -> str:
        rows = [
            {
                "question": each.question,
                "answer": each.answer,
                **dict(zip(LETTERS, each.options, strict=True)),
            }
            for each in questions
        ]
        return write_rows(directory / name, rows)

    asked, shown = write_questions("asked.jsonl", QUESTIONS), write_questions("shown.jsonl", SHOWN)
    for name, num_fewshot in (("learnt", 0), ("shown", len(SHOWN))):
        task = TASK.format(name=name, questions=asked, shown=shown, num_fewshot=num_fewshot)
        (directory / f"{name}.yaml").write_text(task, encoding="utf-8")


def harness_tokenizer(model: Path, directory: Path) -> None:
    """Run the page's lines that make the second tokenizer."""
    assert "checkpoints/demo/model" in SNIPPET
    lines = SNIPPET.replace("checkpoints/demo/model", str(model))
    exec(lines.replace("checkpoints/demo-harness", str(directory)), {})


def test_the_harness_finds_ten_answers_learnt_by_heart_and_scores_the_ids_of_training(
    base: str, tmp_path: Path
) -> None:
    rows = [{"instruction": each.text, "output": each.answer} for each in QUESTIONS]
    options = (
        f"--data-path {write_rows(tmp_path / 'rows.jsonl', rows)} --input-model {base} "
        f"--local-output-dir {tmp_path} --run-name run --cache-dir {tmp_path / 'cache'} "
        "--test-size 0 --max-steps 120 --lr 5e-3 --lr-scheduler linear --warmup-steps 5 "
        "--per-device-train-batch-size 10 --no-gradient-checkpointing --no-bf16 --logging-steps 40"
    )
    trainer.main.main(options.split(), standalone_mode=False)
    saved, second = tmp_path / "run" / "model", tmp_path / "harness"
    harness_tokenizer(saved, second)
    write_tasks(tmp_path)
    done = run(
        "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={saved},tokenizer={second}",
        "--tasks", "learnt,shown", "--apply_chat_template", "--gen_kwargs", "repetition_penalty=1.0",
        "--include_path", str(tmp_path), "--device", "cpu", "--output_path", str(tmp_path / "results"),
        "--log_samples",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    [path] = (tmp_path / "results").rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    assert results["learnt"]["acc,none"] == 1.0
    model, tokenizer = load(str(saved), device="cpu")
    theirs = AutoTokenizer.from_pretrained(second)
    shown = [Turn(each.text, each.answer) for each in SHOWN]
    for task, before in (("learnt", []), ("shown", shown)):
        [path] = (tmp_path / "results").rglob(f"samples_{task}_*.jsonl")
        samples = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert len(samples) == len(QUESTIONS)
        for sample, question in zip(
            sorted(samples, key=lambda sample: sample["doc_id"]), QUESTIONS, strict=True
        ):
            for number, option in enumerate(LETTERS):
                asked = Conversation((*before, Turn(question.text)))
                taught = Conversation((*before, Turn(question.text, option)))
                start = len(encode_prompt(asked, tokenizer))
                input_ids = encode(taught, tokenizer)["input_ids"]
                arguments = sample["arguments"][f"gen_args_{number}"]
                scored = theirs(arguments["arg_0"] + arguments["arg_1"]).input_ids
                assert scored == input_ids[: len(scored)]
                assert tokenizer.decode(scored[start:]) == f"\n{option}"
                logits = model(torch.tensor([scored])).logits[0, start - 1 : -1].log_softmax(-1)
                expected = logits.gather(1, torch.tensor(scored[start:])[:, None]).sum().item()
                assert float(sample["resps"][number][0][0]) == pytest.approx(expected, abs=1e-3)
