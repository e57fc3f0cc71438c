"""Answering a file of rows: the answers are those of one prompt at a time, whatever interrupts it."""

import fcntl
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inference import batch, resumable
from inference.edited_input import prompt_digest
from inference.generation import Answer, load, stream
from tests.conftest import LEARNT, LEARNT_WITH_TOOLS, TOOLS, longest_file, write_rows
from tests.launching import Running, kill
from training.data import pipes
from training.model.save import save_model
from training.text.conversation import Conversation, Turn
from training.text.encoding import encode_prompt
from training.text.turns import ToolUse

# How often the command is killed; more often by hand than in CI.
INTERRUPTIONS = int(os.environ.get("YAYI_TEST_INTERRUPTIONS", "3"))

GREEDY = "--temperature 0 --repetition-penalty 1"
SAMPLED = "--temperature 1 --seed 7 --max-new-tokens 12"

# A row of each format; of one turn and of several, with an answer and without, from very short to long.
ROWS = [
    {"instruction": "你是谁", "input": "", "output": "不知道。", "id": 17},
    {"prompt": "笑一个"},
    {"prompt": "短一点。", "system": "你是一名记者。", "instruction": None},
    LEARNT[3],
    {
        "messages": [{"role": "user", "content": "List two fruits.\nred, yellow"}],
        "source": {"名": [1.0, None]},
    },
    {"conversations": [{"from": "human", "value": "标题？" * 60}, {"from": "gpt", "value": "大桥通车"}]},
    {"instruction": "a"},
    {"prompt": "Describe the river. " * 12},
]
# The prompt of each row.
PROMPTS = [
    Conversation((Turn("你是谁"),)),
    Conversation((Turn("笑一个"),)),
    Conversation((Turn("短一点。"),), "你是一名记者。"),
    Conversation((Turn("标题？", "大桥通车"), Turn("再短一点。")), "你是一名记者。"),
    Conversation((Turn("List two fruits.\nred, yellow"),)),
    Conversation((Turn("标题？" * 60),)),
    Conversation((Turn("a"),)),
    Conversation((Turn("Describe the river. " * 12),)),
]


class Files:
    """The input with ROWS, the output, and what may stand beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.input = write_rows(directory / "in.jsonl", ROWS)
        self.output = directory / "out.jsonl"
        self.partial = directory / "out.jsonl.partial"
        self.lock = directory / "out.jsonl.partial.lock"

    def arguments(self, model: str, more: str = GREEDY) -> str:
        return (
            f"--model {model} --device cpu --input {self.input} --output {self.output} --batch-size 3 {more}"
        )

    def names(self) -> set[str]:
        return set(os.listdir(self.directory))

    def answers(self) -> list[tuple[str, bool]]:
        rows = map(json.loads, self.output.read_text("utf-8").splitlines())
        return [(row["answer"], row["ended"]) for row in rows]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(scope="module")
def babbling(tuned: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tuned model with noise on its weights, so that every token of a prompt changes the answer."""
    model, tokenizer = load(tuned, device="cpu")
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for matrix in (weights for weights in model.parameters() if weights.dim() > 1):
            matrix += 2 * matrix.std() * torch.randn(matrix.shape, generator=noise)
    directory = tmp_path_factory.mktemp("babbling") / "model"
    save_model(model, tokenizer, directory)
    return str(directory)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException | None], list[list[int]]]:
    """A function that has an error, if one is given, raised after a number of batches.

    It returns the list of the batches that are answered until then.
    """
    work_through = batch.work_through

    def arrange(after: int, error: BaseException | None) -> list[list[int]]:
        done: list[list[int]] = []

        def interrupted(rows, journal, total, batch_size, answer):
            def answer_or_fail(rows: list[int]) -> list[dict]:
                if error and len(done) == after:
                    raise error
                done.append(rows)
                return answer(rows)

            work_through(rows, journal, total, batch_size, answer_or_fail)

        monkeypatch.setattr(batch, "work_through", interrupted)
        return done

    return arrange


def answered_alone(model_path: str, **sampling) -> list[Answer]:
    """The answers to PROMPTS, asked one at a time."""
    model, tokenizer = load(model_path, device="cpu")
    answers = []
    for prompt in PROMPTS:
        with stream(model, tokenizer, prompt, **sampling) as answer:
            list(answer)
        answers.append(answer)
    return answers


def errors(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("penalty", [1.0, 1.1, 2.5])
@pytest.mark.parametrize("which", ["tuned", "babbling"])
def test_greedy_answers_are_those_of_one_prompt_at_a_time(outcome, files, request, which, penalty) -> None:
    model = request.getfixturevalue(which)
    more = f"--temperature 0 --repetition-penalty {penalty} --max-new-tokens 16"
    assert outcome(batch.main, files.arguments(model, more))[0] == 0
    alone = answered_alone(model, temperature=0, repetition_penalty=penalty, max_new_tokens=16)
    assert files.answers() == [(answer.text, answer.ended) for answer in alone]
    assert len({answer.text for answer in alone}) > 2


def test_a_row_stays_as_it_was_and_gets_its_answer(outcome, tuned: str, files: Files) -> None:
    outcome(batch.main, files.arguments(tuned))
    text = files.output.read_text("utf-8")
    written = list(map(json.loads, text.splitlines()))
    assert [list(row) for row in written] == [[*row, "answer", "ended"] for row in ROWS]
    for row in written:
        assert isinstance(row.pop("answer"), str)
        assert isinstance(row.pop("ended"), bool)
    assert written == ROWS
    assert "我是雅意。" in text
    assert files.names() == {"in.jsonl", "out.jsonl"}


def test_the_known_answer_is_not_seen(outcome, tuned: str, files: Files) -> None:
    write_rows(Path(files.input), LEARNT)
    outcome(batch.main, files.arguments(tuned))
    answers = files.answers()
    assert answers[0] == ("我是雅意。", True)
    files.output.unlink()
    changed = [{**row, "output": "通车"} for row in LEARNT[:3]]
    *before, last = LEARNT[3]["conversations"]
    changed.append({**LEARNT[3], "conversations": [*before, {**last, "value": "再短"}]})
    write_rows(Path(files.input), changed)
    outcome(batch.main, files.arguments(tuned))
    assert files.answers() == answers


def test_the_longest_prompts_come_first(outcome, tuned: str, files: Files, interrupt) -> None:
    done = interrupt(0, None)
    outcome(batch.main, files.arguments(tuned))
    _, tokenizer = load(tuned, device="cpu")
    order = [row for rows in done for row in rows]
    lengths = [len(encode_prompt(PROMPTS[row], tokenizer)) for row in order]
    assert sorted(order) == list(range(len(ROWS)))
    assert lengths == sorted(lengths, reverse=True)
    assert [len(rows) for rows in done] == [3, 3, 2]


def test_what_was_answered_is_counted_on_stderr(outcome, tuned: str, files: Files) -> None:
    longest = max(answer.tokens for answer in answered_alone(tuned, temperature=0, max_new_tokens=64))
    limit = longest - 1  # some answers are cut off, and some are not
    _, _, err = outcome(batch.main, files.arguments(tuned, f"--temperature 0 --max-new-tokens {limit}"))
    alone = answered_alone(tuned, temperature=0, max_new_tokens=limit)
    tokens, cut_off = sum(answer.tokens for answer in alone), sum(not answer.ended for answer in alone)
    assert 0 < cut_off < 8
    last = err.splitlines()[-1]
    assert last.startswith(f"{files.output}: 8 rows, {tokens} tokens; ")
    assert re.search(r"; [\d.,]+ rows/s, [\d,]+ tokens/s; ", last)
    assert last.endswith(f"; {cut_off} answers cut off at --max-new-tokens {limit}")


def test_a_terminal_gets_a_bar_and_a_file_a_line_now_and_then(outcome, tuned, files, monkeypatch) -> None:
    monkeypatch.setattr(resumable, "SAY_EVERY_S", 0)
    _, _, err = outcome(batch.main, files.arguments(tuned))
    assert re.findall(r"^(\d) of 8 rows answered$", err, re.M) == ["3", "6", "8"]

    files.output.unlink()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, _, err = outcome(batch.main, files.arguments(tuned))
    assert "8/8" in err
    assert "rows answered" not in err


def undisturbed(outcome, model: str, files: Files, more: str) -> bytes:
    assert outcome(batch.main, files.arguments(model, more))[0] == 0
    content = files.output.read_bytes()
    files.output.unlink()
    return content


@pytest.mark.parametrize("after", [0, 1, 2])
def test_ctrl_c_keeps_what_was_answered_and_the_same_command_goes_on(
    outcome, babbling: str, files: Files, interrupt, after: int
) -> None:
    expected = undisturbed(outcome, babbling, files, SAMPLED)
    before = interrupt(after, KeyboardInterrupt())
    status, out, err = outcome(batch.main, files.arguments(babbling, SAMPLED))
    assert (status, out) == (130, "")
    assert f"stopped with {3 * after} rows answered; the same command goes on from there" in err
    assert files.names() == {"in.jsonl", *["out.jsonl.partial"][:after]}

    rest = interrupt(0, None)
    assert outcome(batch.main, files.arguments(babbling, SAMPLED))[0] == 0
    assert len(before) == after
    assert sorted(row for rows in before + rest for row in rows) == list(range(8))
    assert files.output.read_bytes() == expected
    assert files.names() == {"in.jsonl", "out.jsonl"}


def test_sampled_answers_are_repeatable_by_seed_and_differ_without(outcome, babbling, files) -> None:
    one = undisturbed(outcome, babbling, files, SAMPLED)
    assert undisturbed(outcome, babbling, files, SAMPLED) == one
    assert undisturbed(outcome, babbling, files, SAMPLED.replace("--seed 7", "--seed 8")) != one
    assert undisturbed(outcome, babbling, files, SAMPLED.replace("--seed 7", "")) != one


@pytest.mark.parametrize("keep", [100, -1, -30])
def test_a_torn_last_line_is_answered_again(outcome, babbling, files, interrupt, keep: int) -> None:
    """keep: how many bytes of the first line are there or, if negative, how many of the last are missing."""
    expected = undisturbed(outcome, babbling, files, SAMPLED)
    interrupt(2, KeyboardInterrupt())
    outcome(batch.main, files.arguments(babbling, SAMPLED))
    files.partial.write_bytes(files.partial.read_bytes()[:keep])
    again = interrupt(1, KeyboardInterrupt())
    outcome(batch.main, files.arguments(babbling, SAMPLED))
    rest = interrupt(0, None)
    assert outcome(batch.main, files.arguments(babbling, SAMPLED))[0] == 0
    assert len(again + rest) == (3 if keep > 0 else 2)
    assert files.output.read_bytes() == expected


@pytest.mark.parametrize(
    ("change", "then", "now"),
    [
        ("--max-new-tokens 13", "--max-new-tokens 12", "--max-new-tokens 13"),
        ("--top-p 0.5 --seed 8", "--seed 7, --top-p 1.0", "--seed 8, --top-p 0.5"),
        ("--model {other}", "--model {model}", "--model {other}"),
        ("--input {other_rows}", "--input ", "--input "),
    ],
)
def test_answers_to_something_else_are_not_continued(
    outcome, babbling, tuned, files, interrupt, change: str, then: str, now: str
) -> None:
    interrupt(1, KeyboardInterrupt())
    outcome(batch.main, files.arguments(babbling, SAMPLED))
    there = files.partial.read_bytes()
    names = {
        "model": babbling,
        "other": tuned,
        "other_rows": write_rows(files.directory / "2", [{"prompt": "b"}]),
    }
    change, then, now = (text.format(**names) for text in (change, then, now))
    status, _, err = outcome(batch.main, files.arguments(babbling, f"{SAMPLED} {change}"))
    assert status == 2
    assert re.search(f"partial: begun with {then}.*, not {now}.*; go on with what it was begun with, or", err)
    assert err.count("\n") == 1
    assert files.partial.read_bytes() == there


def test_answers_to_rows_that_are_as_they_were_are_kept(outcome, babbling, files, interrupt) -> None:
    short = f"{GREEDY} --max-new-tokens 12"
    before = interrupt(1, KeyboardInterrupt())
    outcome(batch.main, files.arguments(babbling, short))
    one, two, three = before[0]
    # One row goes, others change their places, one of them also what no model reads, and there are new ones.
    left = [row for number, row in enumerate(ROWS) if number not in (one, two)]
    edited = [{"prompt": "新的一行"}, *left, {**ROWS[two], "note": "not read"}, ROWS[three]]
    write_rows(Path(files.input), edited)
    rest = interrupt(0, None)
    status, _, err = outcome(batch.main, files.arguments(babbling, short))
    assert status == 0
    kept = "2 answers are kept, of rows that are as they were; 1 others are dropped"
    assert f"the input has changed: {kept}" in err
    assert sum(map(len, rest)) == len(edited) - 2
    answers = files.answers()
    files.output.unlink()
    assert outcome(batch.main, files.arguments(babbling, short))[0] == 0
    assert files.answers() == answers


def test_a_row_with_another_tool_call_or_result_is_another_row() -> None:
    def digest(tools: tuple[str, ...], *uses: ToolUse) -> str:
        return prompt_digest(Conversation((Turn("q", tool_uses=uses),), "", tools))

    use = ToolUse(("a",), ("1",), "text")
    others = [replace(use, calls=("b",)), replace(use, results=("2",)), replace(use, text="")]
    digests = [digest(()), digest(("f",)), digest(("g",)), digest(("f",), use), digest(("f",), use, use)]
    digests += [digest(("f",), other) for other in others]
    assert len(set(digests)) == len(digests)


def test_an_unfinished_run_of_an_earlier_version_goes_on(outcome, tuned, files: Files, interrupt) -> None:
    """Its answers have no digest of their prompt."""
    expected = undisturbed(outcome, tuned, files, GREEDY)
    interrupt(1, KeyboardInterrupt())
    outcome(batch.main, files.arguments(tuned))
    first, *lines = map(json.loads, files.partial.read_text("utf-8").splitlines())
    for line in lines:
        for answer in line["answers"]:
            del answer["prompt"]
    files.partial.write_text("".join(json.dumps(line) + "\n" for line in [first, *lines]))
    rest = interrupt(0, None)
    assert outcome(batch.main, files.arguments(tuned))[0] == 0
    assert (sum(map(len, rest)), files.output.read_bytes()) == (5, expected)


def test_rows_from_stdin_are_answered_on_stdout(outcome, tuned, files, interrupt, monkeypatch) -> None:
    expected = undisturbed(outcome, tuned, files, GREEDY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(files.directory / "cache"))
    arguments = files.arguments(tuned).replace(str(files.input), "-").replace(str(files.output), "-")
    content = Path(files.input).read_bytes()

    def run() -> tuple[int, str, str]:
        monkeypatch.setattr(pipes, "_copies", {})  # as in another process
        sys.stdout.reconfigure(encoding="latin-1")  # as in another locale; JSON is UTF-8 all the same
        reader, writer = os.pipe()
        os.write(writer, content)
        os.close(writer)
        before = os.dup(0)
        os.dup2(reader, 0)
        try:
            return outcome(batch.main, arguments)
        finally:
            os.dup2(before, 0)
            for descriptor in (reader, before):
                os.close(descriptor)

    interrupt(1, KeyboardInterrupt())
    assert run()[:2] == (130, "")
    interrupt(0, None)
    status, out, err = run()
    assert (status, out.encode()) == (0, expected)
    assert "going on with 3 of 8 rows answered" in err
    assert not list((files.directory / "cache" / "yayi" / "batch").iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.txt", "你是谁\n\n标题？\r\n".encode()),
        ("in.txt", "你是谁\n标题？".encode("gb18030")),
        ("in.csv", "question,answer\n你是谁,\n标题？,\n".encode()),
        (
            "in.jsonl",
            '{"instruction": "你是谁", "output": ""}\n{"question": "标题？", "answer": ""}'.encode(),
        ),
    ],
)
def test_what_is_asked_may_stand_in_files_of_other_kinds(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    prompts = batch.read_prompts(str(tmp_path / name))
    assert [prompt.conversation.turns for prompt in prompts] == [(Turn("你是谁"),), (Turn("标题？"),)]


def test_where_and_how_fast_may_change_and_the_order_of_the_options(
    outcome, babbling: str, files: Files, interrupt
) -> None:
    expected = undisturbed(outcome, babbling, files, "--max-new-tokens 9 --temperature 0")
    interrupt(1, KeyboardInterrupt())
    outcome(batch.main, files.arguments(babbling, "--max-new-tokens 9 --temperature 0"))
    rest = interrupt(0, None)
    more = "--temperature 0 --max-new-tokens 9 --batch-size 2 --device auto"
    assert outcome(batch.main, files.arguments(babbling, more))[0] == 0
    assert [len(rows) for rows in rest] == [2, 2, 1]
    assert files.output.read_bytes() == expected


@pytest.mark.parametrize("content", ["no JSON", "[]\n", '{"prompt": "a"}\n'])
def test_a_file_of_somebody_else_is_left_alone(outcome, files: Files, content: str) -> None:
    files.partial.write_text(content)
    status, _, err = outcome(batch.main, files.arguments("./nope"))
    assert (status, err.count("\n")) == (2, 1)
    assert f"{files.partial}: not from this command" in err
    assert files.partial.read_text() == content


def test_too_little_memory_is_one_line_and_a_smaller_batch_goes_on(outcome, tuned, files, interrupt) -> None:
    expected = undisturbed(outcome, tuned, files, GREEDY)
    interrupt(1, torch.OutOfMemoryError("CUDA out of memory"))
    status, _, err = outcome(batch.main, files.arguments(tuned))
    assert status == 2
    [error] = errors(err)
    assert error.startswith(
        "error: --batch-size 3: the memory does not suffice; the same command with a smaller"
    )
    interrupt(0, None)
    assert outcome(batch.main, files.arguments(tuned, f"{GREEDY} --batch-size 1"))[0] == 0
    assert files.output.read_bytes() == expected


def test_a_full_disk_is_one_line_and_what_is_there_is_kept(outcome, tuned, files, interrupt) -> None:
    expected = undisturbed(outcome, tuned, files, GREEDY)
    interrupt(1, KeyboardInterrupt())
    outcome(batch.main, files.arguments(tuned))
    interrupt(0, None)
    before = files.partial.read_bytes()
    with longest_file(len(before) + 10):
        status, _, err = outcome(batch.main, files.arguments(tuned))
    assert status == 2
    [error] = errors(err)
    assert error.startswith(f"error: {files.partial}: File too large; once that is mended, the same command")
    assert files.partial.read_bytes()[: len(before)] == before
    assert len(files.partial.read_bytes()) == len(before) + 10
    assert outcome(batch.main, files.arguments(tuned))[0] == 0
    assert files.output.read_bytes() == expected


def test_no_room_for_the_output_is_one_line_and_no_answer_is_lost(outcome, tuned, files, monkeypatch) -> None:
    write_rows(Path(files.input), [{**row, "note": "x" * 10_000} for row in ROWS])
    expected = undisturbed(outcome, tuned, files, GREEDY)
    with longest_file(10_000):
        status, _, err = outcome(batch.main, files.arguments(tuned))
    assert status == 2
    assert errors(err)[0].startswith(f"error: {files.output}: File too large; ")
    assert files.names() == {"in.jsonl", "out.jsonl.partial"}
    monkeypatch.setattr(
        batch, "load_from_options", lambda options: pytest.fail("nothing is left for a model to do")
    )
    assert outcome(batch.main, files.arguments(tuned))[0] == 0
    assert files.output.read_bytes() == expected


def test_an_output_that_is_there_is_refused(outcome, files: Files) -> None:
    files.output.write_text("mine")
    write_rows(Path(files.input), [])  # not looked at
    status, _, err = outcome(batch.main, files.arguments("./nope"))
    assert (status, err) == (
        2,
        f"error: {files.output}: is there already; move it, or give another --output\n",
    )
    assert files.output.read_text() == "mine"
    assert files.names() == {"in.jsonl", "out.jsonl"}


def test_a_second_process_at_the_same_output_is_refused(outcome, files: Files) -> None:
    with open(files.lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, _, err = outcome(batch.main, files.arguments("./nope"))
        assert (status, err.count("\n")) == (2, 1)
        assert f"{files.output}: another process is writing it" in err
    # Closed, as the system does for a process that was killed.
    assert "no such model directory" in outcome(batch.main, files.arguments("./nope"))[2]
    assert files.names() == {"in.jsonl"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "target": 4},
        {"prompt": "q", "response": "a", "completion": "b"},
        {"messages": [{"role": "user", "content": "q"}], "target": 4},
        {"question": "q", "answer": None},
        {"question": "q", "answer": " ", "ended": None},
    ],
)
def test_a_prompt_is_read_whatever_its_reference_answer_is(tmp_path: Path, row: dict) -> None:
    [prompt] = batch.read_prompts(write_rows(tmp_path / "rows.jsonl", [row]))
    assert (prompt.row, prompt.conversation) == (row, Conversation((Turn("q"),)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: not JSON"),
        ('["a"]', ":2: a row is a list, not an object"),
        ('{"text": "a"}', ':2: a row needs one of "instruction", '),
        ('{"prompt": " "}', ':2: "prompt" is empty'),
        ('{"prompt": null}', ':2: "prompt" is empty'),
        ('{"prompt": "a", "system": 1}', ':2: "system" is a number, not text'),
        ('{"prompt": "a", "answer": "b"}', ':2: "answer" is there already'),
        (
            '{"question": "a", "answer": "b"}',
            ':2: "answer" is there already, and would be written over; '
            'give it another name, such as "output"',
        ),
        ('{"prompt": "a", "ended": false}', ':2: "ended" is there already'),
        (r'{"prompt": "a", "note": "\ud800"}', ":2: half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_one_line_with_its_place(outcome, files: Files, line: str, message: str) -> None:
    Path(files.input).write_text('{"prompt": "a"}\n' + line + "\n")
    status, _, err = outcome(batch.main, files.arguments("./nope"))  # the model is not looked at
    assert status == 2
    assert err.startswith(f"error: {files.input}{message}")
    assert err.count("\n") == 1
    assert files.names() == {"in.jsonl"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--input {directory}/nope.jsonl", "nope.jsonl: no such file"),
        ("--input {directory}/empty.jsonl", "empty.jsonl: no rows"),
        ("--output {directory}/nope/out.jsonl", "nope: no such directory"),
        ("--output {directory}/in.jsonl/out.jsonl", "in.jsonl: no such directory"),
        ("--output {directory}", "is a directory"),
        ("--output {directory}/in.jsonl", "in.jsonl: is there already"),
        ("--output {directory}/{long}", "File name too long"),
        ("--batch-size 0", "--batch-size"),
        ("", "./nope: no such model directory"),
    ],
)
def test_a_mistake_is_one_line(outcome, files: Files, change: str, message: str) -> None:
    (files.directory / "empty.jsonl").touch()
    change = change.format(directory=files.directory, long="x" * 300)
    status, out, err = outcome(batch.main, files.arguments("./nope", change))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert files.names() == {"in.jsonl", "empty.jsonl"}


def test_a_row_with_tools_is_named_where_the_model_was_taught_none(outcome, tuned, files: Files) -> None:
    write_rows(Path(files.input), [ROWS[0], {"messages": LEARNT_WITH_TOOLS[0], "tools": TOOLS}])
    status, _, err = outcome(batch.main, files.arguments(tuned))
    assert status == 2
    [error] = errors(err)
    assert error.startswith(f"error: {files.input}:2: a row with tools, and the model was taught none")
    assert files.names() == {"in.jsonl"}


def test_a_prompt_that_leaves_no_room_for_an_answer_is_named(outcome, tuned, files, monkeypatch) -> None:
    _, tokenizer = load(tuned, device="cpu")
    lengths = [len(encode_prompt(prompt, tokenizer)) for prompt in PROMPTS]
    longest = lengths.index(max(lengths))
    monkeypatch.setattr(batch, "context_length", lambda model: max(lengths))
    status, _, err = outcome(batch.main, files.arguments(tuned))
    assert status == 2
    [error] = errors(err)
    assert f"{files.input}:{longest + 1}: its {max(lengths)} tokens leave no room for an answer" in error
    assert files.names() == {"in.jsonl"}

    monkeypatch.setattr(batch, "context_length", lambda model: max(lengths) + 1)
    assert outcome(batch.main, files.arguments(tuned))[0] == 0


# The command, on a disk that takes its time, so that a test can kill it while something is written.
ON_A_SLOW_DISK = """
import time
import torch
from inference import batch
from inference import resumable
from training.common import files
from training.common.errors import run_command

def slow_flush(path, flush=files.flush):
    time.sleep(0.05 if path.name.startswith("out.jsonl") else 2)
    flush(path)

torch.set_num_threads(1)
files.flush = resumable.flush = slow_flush
run_command(batch.main)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_gives_the_file_of_one_that_is_not(babbling, tmp_path) -> None:
    """It is killed by -9 at random moments: as it answers, as it loads, and at the end as it writes."""
    rows = [{"prompt": f"{number} {'句' * (number * 7 % 50)}"} for number in range(160 * INTERRUPTIONS)]
    arguments = [
        "--model", babbling, "--device", "cpu", "--input", write_rows(tmp_path / "in.jsonl", rows),
        "--temperature", "1", "--seed", "7", "--max-new-tokens", "12", "--batch-size", "8",
    ]  # fmt: skip

    def start(output: Path) -> Running:
        output.parent.mkdir(exist_ok=True)
        return Running(sys.executable, "-c", ON_A_SLOW_DISK, *arguments, "--output", str(output))

    whole, output = (tmp_path / name / "out.jsonl" for name in ("undisturbed", "killed"))
    partial, unfinished = Path(f"{output}.partial"), output.with_name(f".{output.name}.partial")

    started = time.monotonic()
    running = start(whole)
    assert running.wait_until(Path(f"{whole}.partial").exists)
    loading = time.monotonic() - started
    assert running.finish() == 0, running.output
    answering = time.monotonic() - started - loading

    randomly = random.Random(0)
    kept = 0
    for kills in range(INTERRUPTIONS):
        running = start(output)
        if kills == INTERRUPTIONS - 1:
            assert running.wait_until(unfinished.exists), running.output
            time.sleep(randomly.uniform(0, 0.5))
        elif kills % 3 == 1:
            time.sleep(randomly.uniform(0, loading))
        else:
            assert running.wait_until(lambda before=kept: whole_lines(partial) > before), running.output
            time.sleep(randomly.uniform(0, answering / INTERRUPTIONS / 2))
        kill(running.family())
        assert running.finish() == -signal.SIGKILL, running.output
        assert not output.exists()
        kept, before = whole_lines(partial), kept
        assert kept >= before
        print(f"killed after {kept} of {len(rows) // 8 + 1} lines; writing the output: {unfinished.exists()}")
    running = start(output)
    assert running.finish() == 0, running.output
    assert output.read_bytes() == whole.read_bytes()
    written = list(map(json.loads, output.read_text("utf-8").splitlines()))
    assert [row["prompt"] for row in written] == [row["prompt"] for row in rows]
    assert os.listdir(output.parent) == ["out.jsonl"]


def whole_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
