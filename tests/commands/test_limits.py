"""A base that reads few tokens, and has a chat template of its own, in every command that reads texts.

A GPT-2 has no embedding for a position beyond its last: too long a text is an IndexError there.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, GPT2Config, LlamaConfig, MptConfig

from evaluation import objective, perplexity, subjective
from evaluation.likelihood import log_likelihoods
from inference import batch, chat
from inference.batch_answers import answer_batch
from inference.generation import generation_config, load, reply
from tests.conftest import write_rows
from tests.tiny_models import make_gpt2
from training import check, plan, trainer
from training.common.errors import UserError
from training.model.context import context_limit, longest_row
from training.text.conversation import Conversation, Turn
from training.text.encoding import encode_prompt

POSITIONS = 150

TURN = [{"from": "human", "value": "你是谁"}, {"from": "yayi", "value": "我是雅意。"}]
ROWS = [
    *({"conversations": TURN * turns} for turns in (1, 2, 30)),
    *({"instruction": f"长 {number}" * 80, "output": "短"} for number in range(2)),
    *({"instruction": f"{number}", "output": "y " * 100} for number in range(3)),
]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_gpt2(tmp_path_factory.mktemp("gpt2") / "base", POSITIONS)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", ROWS)


@pytest.fixture(scope="module")
def run_dir(gpt2: str, rows: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on that base that knows nothing of its limit. Of its 6 examples it holds out 2 or 3 whose answers
    the model might make longer than it can read."""
    directory = tmp_path_factory.mktemp("run")
    arguments = (
        f"--data-path {rows} --input-model {gpt2} --local-output-dir {directory} --run-name run --no-bf16 "
        f"--cache-dir {directory} --max-steps 2 --test-size 5 --eval-steps 1 --no-gradient-checkpointing"
    )
    trainer.main.main(arguments.split(), standalone_mode=False)
    return directory / "run"


def test_the_limit_is_the_configurations() -> None:
    assert context_limit(GPT2Config(n_positions=77)) == 77
    assert context_limit(MptConfig(max_seq_len=88)) == 88
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 50, "rope_theta": 1e4}
    assert context_limit(LlamaConfig(max_position_embeddings=200, rope_parameters=scaled)) == 200
    assert context_limit(BloomConfig(seq_length=99)) is None


def test_a_run_cuts_and_drops_what_its_base_cannot_read(run_dir: Path, gpt2: str) -> None:
    assert f"max-length: {POSITIONS}\n" in (run_dir / "options.yaml").read_text("utf-8")
    report = json.loads((run_dir / "report.json").read_text("utf-8"))
    assert report["run"]["options"]["max_length"] == str(POSITIONS)


@pytest.mark.parametrize("command", [check.main, plan.main])
def test_rows_are_counted_by_that_limit_before_a_run(outcome, gpt2, rows, tmp_path, command) -> None:
    more = f"--cache-dir {tmp_path} --num-gpus 1 --gpu-memory 8" if command is plan.main else ""
    arguments = f"--data-path {rows} --input-model {gpt2} {more}"
    status, out, _ = outcome(command, arguments)
    assert status == 0
    assert f"--max-length is {POSITIONS}: more {gpt2} cannot read\n" in out
    assert f"cut after the last turn within --max-length: 1 row ({rows}:3)" in out
    assert f"DROPPED, no answer to learn within --max-length: 2 rows ({rows}:4, {rows}:5)" in out
    status, _, err = outcome(command, f"{arguments} --max-length {POSITIONS + 1}")
    assert status == 2
    assert err == (
        f"error: --max-length 151: {gpt2} can read 150 tokens, as its configuration says; "
        "give no more, or leave the option out\n"
    )


def test_a_checks_json_stays_json(outcome, gpt2: str, rows: str) -> None:
    _, out, err = outcome(check.main, f"--data-path {rows} --input-model {gpt2} --json")
    assert json.loads(out)["max_length"] == POSITIONS
    assert err.startswith(f"--max-length is {POSITIONS}")


def test_a_run_with_a_longer_max_length_is_refused(outcome, gpt2: str, rows: str, tmp_path: Path) -> None:
    arguments = f"--data-path {rows} --input-model {gpt2} --local-output-dir {tmp_path} --run-name run"
    status, _, err = outcome(trainer.main, f"{arguments} --max-length 2048")
    assert status == 2
    assert err.startswith(f"error: --max-length 2048: {gpt2} can read 150 tokens")
    assert list(tmp_path.iterdir()) == []


def test_a_longer_one_that_an_earlier_version_recorded_becomes_the_limit(gpt2: str) -> None:
    assert longest_row(gpt2, 2048, is_given=False) == POSITIONS


def long_prompts(tokenizer) -> list[list[int]]:
    """Prompts that leave room for 3 tokens, for 20, and for all that are asked for."""
    prompts = []
    for room in (3, 20, 60):
        human = "x"
        while len(ids := encode_prompt(Conversation((Turn(human),)), tokenizer)) < POSITIONS - room:
            human += " x"
        prompts.append(ids)
    return prompts


def test_an_answer_ends_where_the_model_can_read_no_further(run_dir: Path) -> None:
    model, tokenizer = load(str(run_dir), device="cpu")
    end = tokenizer.convert_tokens_to_ids("<|End|>")
    with torch.no_grad():
        model.lm_head.weight[end] = 0  # so that no answer ends of itself
    prompts = long_prompts(tokenizer)
    config = generation_config(tokenizer, max_new_tokens=40, temperature=0, repetition_penalty=1.0)
    together = answer_batch(model, tokenizer, prompts, config)
    assert [said.tokens for said in together] == [min(40, POSITIONS - len(prompt)) for prompt in prompts]
    assert together == [answer_batch(model, tokenizer, [prompt], config)[0] for prompt in prompts]
    for prompt, said in zip(prompts, together, strict=True):
        greedy = {"max_new_tokens": 40, "temperature": 0, "repetition_penalty": 1.0}
        assert reply(model, tokenizer, Conversation(()), input_ids=prompt, **greedy) == said.answer
    with pytest.raises(UserError, match="too long: 150 tokens leave no room for an answer"):
        reply(model, tokenizer, Conversation(()), input_ids=[5] * POSITIONS)


def test_likelihoods_of_a_batch_are_those_of_its_prompts_alone_up_to_the_limit(run_dir: Path) -> None:
    model, tokenizer = load(str(run_dir), device="cpu")
    prompts = long_prompts(tokenizer)[::2]
    answers = [[[5], [6, 7]], [[5], [6, 7] * 20]]
    together = log_likelihoods(model, prompts, answers)
    alone = [log_likelihoods(model, [one], [its])[0] for one, its in zip(prompts, answers, strict=True)]
    assert together == [pytest.approx(one, abs=1e-4) for one in alone]


def test_the_chat_says_where_it_was_cut_off(outcome, run_dir: Path) -> None:
    arguments = f"--model {run_dir} --device cpu --temperature 0 --max-new-tokens 4000 --prompt 你是谁"
    status, _, err = outcome(chat.main, arguments)
    assert status == 0
    assert "cut off at the context of 150 tokens" in err


def test_files_of_questions_are_answered_up_to_the_limit(outcome, run_dir: Path, tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "in.jsonl", [{"prompt": "x " * count} for count in (1, 20, 40)])
    output = tmp_path / "out.jsonl"
    arguments = f"--model {run_dir} --device cpu --input {questions} --output {output} --temperature 0"
    assert outcome(batch.main, arguments)[0] == 0
    assert len(output.read_text("utf-8").splitlines()) == 3


@pytest.mark.parametrize("which", ["base", "run"])
def test_a_base_with_a_template_of_its_own_is_evaluated(
    outcome, gpt2, run_dir, rows, tmp_path, caplog, which: str
) -> None:
    model = {"base": gpt2, "run": run_dir}[which]
    usual = f"--model {model} --device cpu --output {tmp_path}"
    short = write_rows(tmp_path / "short.jsonl", ROWS[:2])
    assert outcome(perplexity.main, f"{usual}/perplexity --data-path {short}")[0] == 0
    status, _, err = outcome(perplexity.main, f"{usual}/longer --data-path {rows}")
    assert status == 2
    assert f"{rows}:4: its first supervised answer does not end within the 150 tokens" in err

    one = {"category": "a", "question": "x x x", "options": ["短", "长 长 长 长"], "answer": "A"}
    longest = {"category": "a", "question": "x " * 30, "options": ["y", "z"], "answer": "A"}
    questions = write_rows(tmp_path / "questions.jsonl", [one, longest])
    assert outcome(objective.main, f"{usual}/objective --questions {questions}")[0] == 0
    too_long = write_rows(tmp_path / "too_long.jsonl", [one | {"options": ["y", "z " * 25]}])
    status, _, err = outcome(objective.main, f"{usual}/too-long --questions {too_long}")
    assert status == 2
    assert f"{too_long}:1: with its longest option it has" in err

    asked = write_rows(tmp_path / "asked.jsonl", [{"domain": "a", "question": "x " * 20}])
    arguments = f"ask --model {model} --device cpu --questions {asked} --output {tmp_path / 'asked.out'}"
    assert outcome(subjective.main, arguments)[0] == 0
    assert ("its own chat template is not used" in caplog.text) is (which == "base")
