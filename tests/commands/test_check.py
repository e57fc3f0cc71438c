"""A file made of the sample data, with faults planted among its rows."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from tests.conftest import LEARNT_WITH_TOOLS, MULTI_TURN, SINGLE_TURN, TOOLS, write_rows
from training import check
from training.data.audit import full_form, short_form
from training.data.duplicates import row_hashes
from training.data.findings import KEYS_KEPT, MORE_REASONS, QUANTILES, Findings, reason_of
from training.text.conversation import Conversation, ReadRow, Turn
from training.text.encoding import Encoded, encode, encode_turns

GOOD = [line.encode() for path in (SINGLE_TURN, MULTI_TURN) for line in path.read_text("utf-8").splitlines()]
REPEATED = json.loads(GOOD[0])
LONG_TURN = [{"from": "human", "value": "问"}, {"from": "yayi", "value": "答" * 450}]


def dialogue(*messages: tuple[str, Any], **more: Any) -> dict:
    return {"conversations": [{"from": who, "value": text} for who, text in messages], **more}


# Rows that cannot be used: what is wrong with each, the line, and what is said of it.
UNUSABLE = {
    "cut short": (GOOD[3].decode()[:-9].encode(), "not JSON (Invalid control character at column"),
    "another encoding": ('{"instruction": "问", "output": "答"}'.encode("gbk"), "not UTF-8 (byte 0xce)"),
    "a byte order mark inside the file": (b"\xef\xbb\xbf" + GOOD[3], "BOM"),
    "a raw NUL": (b'{"instruction": "a\0b", "output": "c"}', "not JSON (Invalid control character"),
    "two rows on one line": (GOOD[3] + GOOD[4], "not JSON (Extra data"),
    "no object": (["q", "a"], "a row is a list"),
    "no known format": ({"text": "q"}, 'this one has "text"'),
    "two formats": ({**REPEATED, **dialogue(("human", "q"))}, '"instruction" and "conversations"'),
    "an instruction that is no text": ({"instruction": 7, "output": "a"}, '"instruction" is a number'),
    "an instruction of white space": ({"instruction": "\u3000\n", "output": "a"}, '"instruction" is empty'),
    "no output": ({"instruction": "q"}, '"output" is missing'),
    "an empty output": ({"instruction": "q", "output": ""}, '"output" is empty'),
    "an output of white space": ({"instruction": "q", "output": " \n"}, '"output" is empty'),
    "a dialogue that YaYi starts": (dialogue(("yayi", "a"), ("human", "q")), "starts with the human"),
    "two humans in a row": (dialogue(("human", "q"), ("human", "q")), "alternates"),
    "no answer": (dialogue(("human", "q")), "ends with the human"),
    "an unknown speaker": (dialogue(("human", "q"), ("observer", "a")), 'is "observer"'),
    "an empty answer inside": (dialogue(("human", "q"), ("yayi", "")), '"conversations"[1]."value" is empty'),
    "a text that is null": (
        dialogue(("human", None), ("yayi", "a")),
        '"conversations"[0]."value" is missing',
    ),
    "no messages": (dialogue(), '"conversations" is empty'),
    "two system texts": (dialogue(("system", "s"), ("system", "t"), ("human", "q")), "a second system text"),
    "half a character": (b'{"instruction": "\\ud83d", "output": "a"}', "surrogate"),
}

# Rows that can be used, but that somebody should know of.
NOTED = {
    "an exact duplicate": (REPEATED, "duplicate"),
    "another answer": ({**REPEATED, "output": "我不知道。"}, "conflict"),
    "our control token": ({"instruction": "什么是<|End|>？", "output": "a"}, "lookalike"),
    "its misspelling": ({"instruction": "q <|end|>", "output": "a"}, "lookalike"),
    "another model's": ({"instruction": "q2", "output": "a<|im_end|>"}, "lookalike"),
    "the tokenizer's": ({"instruction": "q3", "output": "a</s>"}, "lookalike"),
    "NUL": ({"instruction": "q4", "output": "a\0"}, "nul"),
    "a byte order mark in a text": ({"instruction": "\ufeffq5", "output": "a"}, "bom"),
    "the character that goes": ({"instruction": "q6\ue000", "output": "a"}, "breaker"),
    "a first turn too long": ({"instruction": "长" * 600, "output": "a"}, "dropped"),
    "no last answer": (dialogue(("human", "q7"), ("yayi", "a"), ("human", "q")), "open"),
    "a second system text": (
        dialogue(("system", "s"), ("human", "q8"), ("yayi", "a"), system="t"),
        "system",
    ),
    "the beginning of another row": (dialogue(("human", "q9"), ("yayi", "a")), "prefix"),
    "the rest of it": (dialogue(("human", "q9"), ("yayi", "a"), ("human", "q"), ("yayi", "a")), None),
    "a second turn too long": ({"conversations": LONG_TURN * 2}, "cut"),
}


@pytest.fixture
def planted(tmp_path: Path) -> tuple[str, dict[str, int]]:
    """The file, and the line of each fault in it."""
    faults = {what: row for what, (row, _) in (UNUSABLE | NOTED).items()}
    lines = list(GOOD)
    random = np.random.default_rng(0)
    places = sorted(random.choice(np.arange(1, len(GOOD)), len(faults), replace=False).tolist())
    planted = {}
    for shift, (what, place) in enumerate(zip(faults, places, strict=True)):
        row = faults[what]
        lines.insert(place + shift, row if isinstance(row, bytes) else json.dumps(row).encode())
        planted[what] = place + shift + 1
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines) + b"\n")
    return str(path), planted


def test_all_planted_faults_are_found_with_their_lines(planted, base: str, outcome) -> None:
    path, lines = planted
    status, out, err = outcome(check.main, f"--data-path {path} --input-model {base} --max-length 512 --json")
    assert status == 2
    found = json.loads(out)
    assert found["file"] == path
    assert found["rows"] == len(GOOD) + len(UNUSABLE) + len(NOTED)

    assert [line for line, _ in found["errors"]] == [lines[what] for what in UNUSABLE]
    for (line, problem), (_, said) in zip(found["errors"], UNUSABLE.values(), strict=True):
        assert said in problem, line
        is_named = line in [line for (line,) in found["unusable"][reason_of(problem)]["lines"]]
        assert (f"error: {path}:{line}: {problem}\n" in err) == is_named
    assert max(noted["count"] for noted in found["unusable"].values()) == 4
    assert sum(noted["count"] for noted in found["unusable"].values()) == len(UNUSABLE)
    assert err.splitlines()[-1] == (
        f"error: {len(UNUSABLE)} of {found['rows']} rows cannot be used, {len(UNUSABLE) - 1} of them named "
        "(training.check --all names all); mend them, or pass --on-bad-row drop"
    )

    expected: dict[str, list[list[int]]] = {"bom": [[1]]}
    for what, (_, kind) in NOTED.items():
        if kind is None:
            continue
        original = [1] if kind in ("duplicate", "conflict") else []
        expected.setdefault(kind, []).append([*original, lines[what]])
    assert {kind: noted["lines"][:1] for kind, noted in found["notes"].items()} == {
        kind: places[:1] for kind, places in expected.items() if kind != "conflict"
    } | {"conflict": [[1, lines["another answer"], lines["an exact duplicate"]]]}
    assert found["notes"]["lookalike"]["lines"] == expected["lookalike"][:3]
    counts = {kind: len(places) for kind, places in expected.items()} | {"conflict": 3}
    assert {kind: noted["count"] for kind, noted in found["notes"].items()} == counts


def test_different_answers_after_the_same_results_of_tools_contradict_each_other(
    base: str, outcome, tmp_path: Path
) -> None:
    *called, result, answer = LEARNT_WITH_TOOLS[0]
    changed = {
        "as it was": [result, answer],
        "another answer": [result, {**answer, "content": "九点。"}],
        "after another result": [{**result, "content": "{}"}, {**answer, "content": "不知道。"}],
    }
    rows = [{"messages": called + end, "tools": TOOLS} for end in changed.values()]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    status, out, _ = outcome(check.main, f"--data-path {path} --input-model {base} --json")
    assert status == 0
    assert json.loads(out)["notes"]["conflict"] == {"count": 2, "lines": [[1, 2]]}


def test_the_text_form_names_every_reason_with_its_first_places(planted, base: str, outcome) -> None:
    path, lines = planted
    status, out, err = outcome(check.main, f"--data-path {path} --input-model {base} --on-bad-row drop")
    assert (status, err) == (0, "")
    assert f"cannot be used: {len(UNUSABLE)} rows" in out
    assert (
        f'"output" is empty: 2 rows ({path}:{lines["an empty output"]}, '
        f"{path}:{lines['an output of white space']})"
    ) in out
    assert f"    {path}:{lines['cut short']}: not JSON (Invalid control character at column" in out
    assert f"the same as an earlier row: 1 row ({path}:1 = {lines['an exact duplicate']})" in out
    assert "a text that looks like a control token (it stays text): 4 rows (" in out
    assert ", ...)" in out
    assert out.count("an example, supervised tokens between ⟦ and ⟧:") == 2
    assert "你是谁\n\n<|YaYi|>⟦:\n我是雅意" in out


def test_the_sample_data_has_no_fault(base: str, outcome) -> None:
    arguments = f"--data-path {SINGLE_TURN} --data-path {MULTI_TURN} --input-model {base} --json"
    status, out, err = outcome(check.main, arguments)
    assert (status, err) == (0, "")
    single, multi = map(json.loads, out.splitlines())
    assert (single["rows"], multi["rows"]) == (132, 28)
    for found in (single, multi):
        assert (found["errors"], found["unusable"], found["notes"], found["ends_at"]) == ([], {}, {}, None)
    assert single["formats"] == {"instruction": 132}
    assert multi["formats"] == {"YaYi multi-round": 28}
    assert single["domains"]["金融风控领域任务"] == 20
    assert sum(single["domains"].values()) == 132
    assert multi["turns"] == {"2": 7, "3": 7, "4": 7, "5": 7}


def test_the_numbers_are_those_of_the_encoded_rows(base: str, tokenizer, outcome, tmp_path: Path) -> None:
    conversations = [Conversation((Turn("q" * i, "a" * (i * i)),) * 2) for i in range(1, 12)]
    encoded = [encode(conversation, tokenizer) for conversation in conversations]
    lengths = [len(example["input_ids"]) for example in encoded]
    supervised = sum(label != -100 for example in encoded for label in example["labels"])
    rows = [
        {"messages": [{"role": role, "content": text} for turn in conversation.turns
                      for role, text in (("user", turn.human), ("assistant", turn.yayi))]}
        for conversation in conversations
    ]  # fmt: skip
    path = write_rows(tmp_path / "rows.jsonl", rows)
    status, out, _ = outcome(check.main, f"--data-path {path} --input-model {base} --max-length 200 --json")
    found = json.loads(out)
    assert status == 0
    assert (found["tokens"], found["learnt"]) == (sum(lengths), supervised)
    assert found["quantiles"]["0"] == min(lengths)
    assert found["quantiles"]["50"] == sorted(lengths)[5]
    assert found["quantiles"]["100"] == max(lengths)
    assert found["histogram"] == {
        str(top): sum(top // 2 < length <= top for length in lengths) for top in (64, 128, 256, 512)
    }
    assert found["formats"] == {"messages": 11}

    answers = sorted(
        end - start
        for conversation in conversations
        for start, end in encode_turns([conversation], tokenizer)[0].answers
    )
    assert found["answer_quantiles"] == {
        str(percent): answers[(len(answers) - 1) * percent // 100] for percent in QUANTILES
    }
    assert sum(found["answer_histogram"].values()) == len(answers) == 22


@pytest.mark.parametrize("on_bad_row", ["error", "drop"])
def test_an_array_that_cannot_be_read_on_is_an_error_whatever_is_to_be_dropped(
    base: str, outcome, tmp_path: Path, on_bad_row: str
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(f'[{json.dumps(REPEATED)},\n{{"instruction": }},\n{json.dumps(REPEATED)}]')
    status, out, err = outcome(
        check.main, f"--data-path {path} --input-model {base} --on-bad-row {on_bad_row}"
    )
    assert status == 2
    assert "2 rows, 1 of them can be used" in out
    assert f"error: {path}:2: not JSON (" in err
    assert "the array was not read from here on" in err
    assert "--on-bad-row" not in err  # dropping cannot help


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{}, {}], "none of the rows can be used"),
        ([{}, REPEATED], "every row is longer than --max-length 9"),
    ],
)
def test_nothing_to_learn_is_an_error(base: str, outcome, tmp_path: Path, rows: list, message: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    options = "--on-bad-row drop --max-length 9"
    status, _, err = outcome(check.main, f"--data-path {path} --input-model {base} {options}")
    assert (status, err) == (2, f"error: {path}: {message}\n")


def test_three_places_of_a_reason_are_named_and_with_all_every_one(
    base: str, outcome, tmp_path: Path
) -> None:
    rows = [{}, *[{"instruction": "q"}] * 150, *[REPEATED] * 150]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    arguments = f"--data-path {path} --input-model {base}"
    refused, remedy = "error: 151 of 301 rows cannot be used", "; mend them, or pass --on-bad-row drop\n"
    status, out, err = outcome(check.main, arguments)
    assert status == 2
    assert err == f"{refused}, 4 of them named (training.check --all names all){remedy}"
    assert f'"output" is missing: 150 rows ({path}:2, {path}:3, {path}:4, ...)' in out
    assert f"the same as an earlier row: 149 rows ({path}:152 = 153 = 154, ...)" in out
    assert out.count(path) == 1 + 1 + 3 + 1

    # The trainer's error names three, too, and so does the check where its text is for programs.
    _, _, err = outcome(check.main, f"{arguments} --json")
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["error"] * 5
    assert f'error: {path}:4: "output" is missing\n' in err

    status, out, err = outcome(check.main, f"{arguments} --all")
    assert (status, err) == (2, refused + remedy)
    for line in range(2, 152):
        assert f'    {path}:{line}: "output" is missing\n' in out
    assert f"{path}:{' = '.join(map(str, range(152, 302)))}\n" in out


def test_reasons_beyond_the_limit_are_counted_together() -> None:
    findings = Findings(100, [])
    for number in range(300):
        chunk = Findings(100, [])
        chunk.add_unusable(number, f"reason {number}")
        findings += chunk
    unusable = findings.summary()["unusable"]
    assert len(unusable) == KEYS_KEPT + 1
    assert unusable[MORE_REASONS] == {"count": 300 - KEYS_KEPT, "lines": [[100], [101], [102]]}


def test_the_verdict_comes_last_and_says_what_to_do(base: str, outcome, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [REPEATED, {}])
    options = "--on-bad-row drop --learn last --columns question=instruction,answer=output"
    options += " --system 你是记者。"
    status, out, err = outcome(
        check.main, f"--data-path {tmp_path} --data-path {path}:0.5 --input-model {base} {options}"
    )
    assert (status, err) == (
        0,
        f"{path}: weight 0.5 counts in training only; here each row is taken once\n",
    )
    assert out.splitlines()[-2:] == [
        "usable: 2 of 4 rows can be trained on; the others are dropped",
        f"next: training.trainer with --data-path {tmp_path} --data-path {path}:0.5 --max-length 2048 "
        "--columns question=instruction,answer=output --system '你是记者。' --learn last --on-bad-row drop",
    ]
    assert "<|System|>:\n你是记者。\n\n<|Human|>:\n" in out


def test_findings_of_stretches_add_up_to_those_of_the_file() -> None:
    def findings_of(rows: range) -> Findings:
        findings = Findings(100, [])
        for i in rows:
            conversation = Conversation((Turn(f"q{i % 7}", f"a{i % 5}"), Turn("<|x|>" * (i % 3) + "y", "\0")))
            if i % 4:
                end = 60 + 7 * i
                encoded = Encoded([0] * end, [20, end], [(10, 20), (30, end)])
                read = ReadRow(
                    conversation,
                    f"f{i % 2}",
                    "",
                    is_dialogue=True,
                    not_learnt=(f"k{i % 3}",),
                    harmless=("id",),
                )
                kept = end if end <= 100 else 20
                findings.add_usable(i, read, conversation, row_hashes(conversation), encoded, kept)
            else:
                findings.add_unusable(i, f"reason {i % 8}")
        return findings

    whole = findings_of(range(300)).summary()
    for cut in (0, 1, 150, 299, 300):
        added = findings_of(range(cut))
        added += findings_of(range(cut, 300))
        assert added.summary() == whole
    assert json.loads(json.dumps(whole)) == whole


def test_the_two_forms_say_what_is_kept() -> None:
    findings = Findings(100, [])
    conversation = Conversation((Turn("q", "a"),))
    encoded = Encoded([0] * 25, [25], [(10, 25)])
    read = ReadRow(conversation, "instruction", "", is_dialogue=False)
    findings.add_usable(1, read, conversation, row_hashes(conversation), encoded, 25)
    findings.add_remarks(["not UTF-8"])
    assert short_form("f", findings.summary()) == [
        "f: 1 rows of 25 tokens, 15 of them supervised",
        "f: not UTF-8",
    ]
    assert full_form("f", findings.summary())[1] == "f: not UTF-8"
    assert full_form("f", findings.summary())[-1].endswith("sees 1 rows of 25 tokens, 15 of them supervised")


def test_supervised_tokens_are_coloured_for_a_terminal(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    echoed: list[str] = []
    monkeypatch.setattr(click, "echo", echoed.append)
    check.main.main(f"--data-path {SINGLE_TURN} --input-model {base}".split(), standalone_mode=False)
    assert "<|YaYi|>\x1b[32m⟦:\n我是雅意" in echoed[0]
    assert "<|End|>⟧\x1b[0m" in echoed[0]


def test_problems_of_one_kind_are_counted_together() -> None:
    assert reason_of("not JSON (Extra data at column 3); expected one") == "not JSON; expected one"
    assert reason_of("not JSON (Exceeds the limit (4300 digits) for: 5000)") == "not JSON"
    problem = '"messages"[3]."weight (w)" is 2; 1 or true says so'
    assert reason_of(problem) == problem.replace("[3]", "[…]").replace("2;", "…;")
    of_two = {reason_of(f'"messages"[{at}]."role" is "{name}"; known are a') for at, name in enumerate("ab")}
    assert of_two == {'"messages"[…]."role" is …; known are a'}
    for problem in ('"output" is empty', '"from" is a number; known are', '"history" is a list, not text'):
        assert reason_of(problem) == problem
