"""Answers collected from a model that is loaded here, and from one behind an endpoint."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evaluation import endpoint, subjective
from evaluation.subjective_questions import read_answers, read_subjective_questions
from inference.generation import load, reply
from tests.conftest import ROOT, write_rows
from training.text.conversation import Conversation, Turn

QUESTIONS = [
    {"domain": "媒体领域", "question": "你是谁"},
    {"domain": "基础能力-主观题", "category": "翻译题", "question": "标题？\n再短一点。"},
    {"domain": "基础能力-主观题", "category": "编程题", "question": "笑一个"},
]
GREEDY = "--temperature 0 --repetition-penalty 1 --max-new-tokens 12 --batch-size 2"


@pytest.fixture
def questions(tmp_path: Path) -> str:
    return write_rows(tmp_path / "questions.jsonl", QUESTIONS)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_model_that_is_loaded_here(outcome, tuned: str, questions: str, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    files = f"--questions {questions} --output {output}"
    status, _, err = outcome(subjective.main, f"ask --model {tuned} --device cpu {files} {GREEDY}")
    assert status == 0
    model, tokenizer = load(tuned, device="cpu")
    sampling = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": 12}
    expected = [
        reply(model, tokenizer, Conversation((Turn(row["question"]),)), **sampling) for row in QUESTIONS
    ]
    rows = rows_of(output)
    assert [row["answer"] for row in rows] == expected
    assert rows[0] == {"domain": "媒体领域", "category": "", "question": "你是谁"} | {
        "model": tuned,
        "answer": "我是雅意。",
        "ended": True,
    }
    cut_off = sum(not row["ended"] for row in rows)
    assert err.endswith(f"{output}: 3 answers, {cut_off} of them cut off\n")
    assert [item.answer for item in read_answers([str(output)])] == expected


class Server(ThreadingHTTPServer):
    """Answers chat completions with the question backwards, or refuses them with `status`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[dict] = []
        self.keys: list[str] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.keys.append(self.headers["Authorization"])
        text = request["messages"][0]["content"][::-1]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if text.startswith("个"):
            choice["finish_reason"] = "length"
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        refusal = {"error": {"message": "no such model"}}
        self.wfile.write(json.dumps(answer if self.server.status == 200 else refusal).encode())

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ask(outcome, server: Server, questions: str, tmp_path: Path) -> Callable[[str], tuple[int, str, str]]:
    def ask(more: str = "") -> tuple[int, str, str]:
        files = f"--questions {questions} --output {tmp_path / 'answers.jsonl'} --batch-size 2"
        return outcome(subjective.main, f"ask --endpoint {server.url} --model org/other {files} {more}")

    return ask


def test_a_model_behind_an_endpoint(ask, server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    assert ask("--temperature 0.5 --top-p 0.9 --max-new-tokens 7 --seed 3")[0] == 0
    rows = rows_of(tmp_path / "answers.jsonl")
    assert [row["answer"] for row in rows] == [row["question"][::-1] for row in QUESTIONS]
    assert [row["ended"] for row in rows] == [True, True, False]
    assert {row["model"] for row in rows} == {"org/other"}
    assert set(server.keys) == {"Bearer sesame"}
    for request in server.requests:
        assert len(request.pop("messages")) == 1
        sampling = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "seed": 3}
        assert request == {"model": "org/other"} | sampling


def test_without_a_key_or_a_seed_none_is_sent(ask, server: Server, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert ask()[0] == 0
    assert set(server.keys) == {"Bearer none"}
    assert not any("seed" in request for request in server.requests)


def test_an_endpoint_that_refuses_is_one_line_and_the_same_command_goes_on(
    ask, server: Server, tmp_path: Path, monkeypatch
) -> None:
    ask_endpoint = subjective.ask_endpoint

    def first_batch_only(*arguments):
        server.status = 404 if server.requests else 200
        return ask_endpoint(*arguments)

    monkeypatch.setattr(subjective, "ask_endpoint", first_batch_only)
    status, _, err = ask()
    assert status == 2
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: {server.url}: org/other does not answer (")
    assert "no such model" in line
    assert line.endswith("what it has answered is kept, and the same command goes on from there")

    monkeypatch.undo()
    server.status = 200
    server.requests.clear()
    assert ask()[0] == 0
    assert len(server.requests) == 1
    assert [row["answer"] for row in rows_of(tmp_path / "answers.jsonl")] == [
        row["question"][::-1] for row in QUESTIONS
    ]
    assert ask()[0] == 2


def test_an_endpoint_that_nobody_serves_is_one_line(
    outcome, questions: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(endpoint, "RETRIES", 0)
    arguments = (
        f"--endpoint http://127.0.0.1:9/v1 --model m --questions {questions} --output {tmp_path / 'a'}"
    )
    status, _, err = outcome(subjective.main, f"ask {arguments}")
    assert status == 2
    assert "error: http://127.0.0.1:9/v1: m does not answer (Connection error.)" in err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a"}, ':2: "domain" is missing, empty, or not text'),
        ({"domain": "域"}, ':2: "question" is missing, empty, or not text'),
        ({"domain": "域", "question": "a", "category": 1}, ':2: "category" is missing, empty, or not text'),
        (QUESTIONS[0], ":2: the same question as {path}:1; take one of them out"),
        (["a"], ":2: a row is an object"),
    ],
)
def test_a_question_at_fault_is_named(outcome, tmp_path: Path, row, message: str) -> None:
    path = write_rows(tmp_path / "questions.jsonl", [QUESTIONS[0], row])
    status, _, err = outcome(
        subjective.main, f"ask --model ./nope --questions {path} --output {tmp_path / 'answers.jsonl'}"
    )
    assert (status, err) == (2, f"error: {path}{message.format(path=path)}\n")


def test_the_sample_questions_are_of_the_original_s_domains_and_categories() -> None:
    found = read_subjective_questions(str(ROOT / "data" / "evaluation" / "subjective_example.jsonl"))
    published = json.loads((ROOT / "data" / "evaluation" / "published_results.json").read_text("utf-8"))
    tables = {table["title"]: table["categories"] for table in published if table["kind"] == "subjective"}
    assert len(found) >= 30
    for title, categories in tables.items():
        of_domain = [question for question in found if question.domain == title]
        assert {question.category for question in of_domain} == set(categories or [""])
        assert len(of_domain) >= 4
    assert {question.domain for question in found} == set(tables)
