"""Answers of a model behind an endpoint, and what a server may do instead of answering."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evaluation import endpoint, subjective, tools
from tests.conftest import HARD_ARGUMENTS, LEARNT_WITH_TOOLS, ROOT, TOOLS, write_rows
from training.text.calls import answer_with_calls, call_text

QUESTIONS = [{"domain": "媒体领域", "question": f"第{number}题？"} for number in range(3)]
ANSWERED = {"role": "assistant", "content": "好。"}


def completion(message: dict, reason: str | None = "stop") -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": reason}
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return json.dumps(answer).encode()


def error(message: str, code: str | int | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "code": code, "type": "x"}}).encode()


HTML = b"<!DOCTYPE html>\n<html><body>Welcome</body></html>"


class Server(ThreadingHTTPServer):
    """Answers chat completions with the question backwards, unless `plan` has something else for a question.

    plan: for each question, what is done for its requests, one after another, the last of them for all later
    ones: (status, body), or a function of the handler, or None for an answer.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.plan: dict[str, list] = {}
        self.requests: list[dict] = []
        self.keys: list[str] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *arguments) -> None:
        pass  # a client that has gone


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.keys.append(self.headers["Authorization"])
        question = request["messages"][0]["content"]
        steps = self.server.plan.get(question, [])
        step = steps.pop(0) if len(steps) > 1 else steps[0] if steps else None
        if callable(step):
            step(self)
            return
        status, body = step or (200, completion({"role": "assistant", "content": question[::-1]}))
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if body == HTML else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        pass


def hang(handler: _Handler) -> None:
    handler.server.ended.wait(60)


def reset(handler: _Handler) -> None:
    handler.close_connection = True
    handler.connection.close()


def start(server: Server) -> threading.Thread:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    return thread


def stop(server: Server, thread: threading.Thread) -> None:
    server.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = start(server)
    yield server
    stop(server, thread)


@pytest.fixture
def ask(outcome, server: Server, tmp_path: Path, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)

    def ask(more: str = "", questions: list[dict] = QUESTIONS, url: str = server.url) -> tuple[int, str, str]:
        path = write_rows(tmp_path / "questions.jsonl", questions)
        files = f"--questions {path} --output {tmp_path / 'answers.jsonl'}"
        return outcome(subjective.main, f"ask --endpoint {url} --model org/other {files} {more}")

    return ask


def rows_in(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "answers.jsonl").read_text("utf-8").splitlines()]


def test_what_is_sent_and_what_is_kept(ask, server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    server.plan["第2题？"] = [(200, completion(ANSWERED, "length"))]
    status, _, err = ask("--temperature 0.5 --top-p 0.9 --max-new-tokens 7 --seed 3 --batch-size 2")
    assert status == 0
    assert err.endswith("answers.jsonl: 3 answers, 1 of them cut off\n")
    assert rows_in(tmp_path) == [
        {"domain": "媒体领域", "category": "", "question": f"第{number}题？", "model": "org/other"}
        | {"answer": answer, "ended": number < 2}
        for number, answer in enumerate(["？题0第", "？题1第", "好。"])
    ]
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


def test_forty_questions_end_with_forty_lines_whatever_the_server_does(
    ask, server: Server, tmp_path: Path, monkeypatch
) -> None:
    """It refuses, hangs, resets, answers HTML, is killed, and comes back."""
    monkeypatch.setattr(
        endpoint, "FIRST_WAIT_S", 0.05
    )  # so that the retries take longer than the server is away
    questions = [{"domain": "域", "question": f"问题{number:02}"} for number in range(40)]
    names = [row["question"] for row in questions]
    back: list[tuple[Server, threading.Thread]] = []

    def die(handler: _Handler) -> None:
        reset(handler)

        def come_back() -> None:
            server.shutdown()
            server.server_close()
            time.sleep(0.2)
            successor = Server(server.server_port)
            successor.plan = server.plan
            back.append((successor, start(successor)))

        threading.Thread(target=come_back).start()

    server.plan = {
        names[1]: [(400, error("This is not a question.", "invalid_request_error"))],
        names[2]: [(400, error("The response was filtered.", "content_filter"))],
        names[3]: [(429, error("You exceeded your current quota.", "insufficient_quota"))],
        names[4]: [hang, None],
        names[5]: [hang],
        names[6]: [reset, reset, None],
        names[7]: [(502, HTML), None],
        names[8]: [(200, HTML)],
        names[9]: [(429, error("Slow down.")), (503, b""), None],
        names[10]: [(200, error("Upstream failed.", 502)), None],
        names[11]: [(200, error("No.", "moderation"))],
        names[12]: [(200, completion({"content": None}))],
        names[13]: [(200, completion({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls"))],
        names[14]: [(200, completion({"content": "", "reasoning_content": "嗯……"}, "length"))],
        names[15]: [(200, completion({"content": [{"type": "text", "text": "甲"}, {"text": "乙"}]}))],
        names[16]: [(200, completion({"content": "半"}, "content_filter"))],
        names[17]: [(200, completion({"content": None, "refusal": "I will not."}))],
        names[18]: [(200, completion({"content": "丙", "reasoning_content": "嗯"}, None))],
        names[20]: [die, None],
    }
    status, _, err = ask("--timeout 0.3 --batch-size 4", questions)
    for successor in back:
        stop(*successor)
    assert (status, len(back)) == (0, 1), err
    rows = rows_in(tmp_path)
    assert [row["question"] for row in rows] == names
    usual = {n for n in range(40)} - {1, 2, 3, 5, 8, *range(11, 19)}
    for number in usual:
        assert (rows[number]["answer"], rows[number]["ended"]) == (names[number][::-1], True), number
    reasons = {number: rows[number].get("refused") for number in range(40)}
    assert {number: reason for number, reason in reasons.items() if reason} == {
        1: "400: This is not a question.",
        2: "400: The response was filtered.",
        3: "429: You exceeded your current quota.",
        11: "400: No.",
        16: "content filter",
        17: "I will not.",
    }
    assert {number for number in range(40) if "failed" in rows[number]} == {5, 8}
    assert rows[5]["failed"] == "nothing was sent for 0.3 s"
    assert rows[8]["failed"].startswith("HTML instead of JSON; the URL of ")
    assert [rows[number]["answer"] for number in (12, 13, 14, 15, 18)] == ["", "", "", "甲乙", "丙"]
    assert rows[13]["tool_call"] is True
    assert [rows[number]["ended"] for number in (12, 14, 15, 18)] == [True, False, True, True]
    assert err.endswith(
        "answers.jsonl: 32 answers, 1 of them cut off, 2 empty, 1 only the call of a tool; "
        "6 questions refused; 2 questions failed\n"
    )
    assert err.count(" is refused (") == 6
    assert err.count(" has no answer (") == 2
    assert not (tmp_path / "answers.jsonl.partial").exists()


def test_an_endpoint_that_has_no_such_model_is_one_line_and_the_same_command_goes_on(
    ask, server: Server, tmp_path: Path
) -> None:
    server.plan["第2题？"] = [(404, error("no such model"))]
    status, _, err = ask("--batch-size 1")
    assert status == 2
    assert err.splitlines()[-1] == (
        f"error: {server.url}: org/other does not answer (404: no such model); what it has answered is kept, "
        "and the same command goes on from there"
    )
    server.plan.clear()
    server.requests.clear()
    status, _, err = ask("--batch-size 2 --timeout 60")  # which do not change the answers
    assert status == 0
    assert "going on with 2 of 3 rows answered" in err
    assert [row["answer"] for row in rows_in(tmp_path)] == ["？题0第", "？题1第", "？题2第"]
    assert len(server.requests) == 1
    assert ask()[0] == 2


def test_each_answer_is_on_the_disk_as_it_comes(ask, server: Server, tmp_path: Path) -> None:
    """While the second of two questions that were asked together is not answered."""
    kept = []

    def look(handler: _Handler) -> None:
        while not (tmp_path / "answers.jsonl.partial").exists() and len(kept) < 1000:
            kept.append(0)
            time.sleep(0.01)
        kept.append((tmp_path / "answers.jsonl.partial").read_text("utf-8"))
        reset(handler)

    server.plan["第1题？"] = [look, None]
    assert ask("--batch-size 2", QUESTIONS[:2])[0] == 0
    assert "？题0第" in kept[-1]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ((401, error("bad key")), "(401: bad key; the key is in OPENAI_API_KEY)"),
        ((200, HTML), "(HTML instead of JSON; the URL of an OpenAI-compatible server mostly ends in /v1)"),
        ((404, HTML), "(404: HTML instead of JSON; the URL of an OpenAI-compatible"),
        ((200, b'{"message": "ok"}'), '(neither an answer nor an error: {"message": "ok"})'),
        ((503, b"busy\nnow"), "(503: busy now)"),
        ((500, b""), "(500: an empty response)"),
    ],
)
def test_a_server_that_answers_nothing_at_all_is_one_line(
    ask, server: Server, tmp_path: Path, step: tuple, message: str
) -> None:
    server.plan = {row["question"]: [step] for row in QUESTIONS}
    status, _, err = ask()
    assert status == 2
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert message in line
    assert list(tmp_path.iterdir()) == [tmp_path / "questions.jsonl"]


def test_a_server_that_is_out_of_order_after_some_answers_is_not_asked_all_the_rest(
    ask, server: Server, tmp_path: Path
) -> None:
    """What failed is not recorded: the same command asks it again."""
    questions = [{"domain": "域", "question": f"问题{number:02}"} for number in range(40)]
    server.plan = {row["question"]: [(500, b"out of order")] for row in questions[5:]}
    status, _, err = ask("--batch-size 3", questions)
    assert status == 2
    assert "org/other does not answer (500: out of order); what it has answered is kept" in err
    asked = Counter(request["messages"][0]["content"] for request in server.requests)
    assert len(asked) <= 5 + endpoint.FAILURES_IN_A_ROW + 3
    assert max(asked.values()) == 1 + endpoint.RETRIES
    server.plan.clear()
    status, _, err = ask("--batch-size 3", questions)
    assert status == 0
    assert "going on with 5 of 40 rows answered" in err
    assert err.endswith("40 answers, 0 of them cut off\n")


def test_an_endpoint_that_nobody_serves_is_one_line(ask, monkeypatch) -> None:
    monkeypatch.setattr(endpoint, "RETRIES", 1)
    status, _, err = ask(url="http://127.0.0.1:9/v1")
    assert status == 2
    assert "error: http://127.0.0.1:9/v1: org/other does not answer (Connection error.)" in err


def test_a_server_that_wants_max_completion_tokens_gets_them(ask, server: Server) -> None:
    wanted = error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    server.plan = {row["question"]: [(400, wanted), None] for row in QUESTIONS}
    status, _, err = ask("--max-new-tokens 7 --batch-size 1", QUESTIONS[:1])
    assert status == 0
    assert [request.get("max_completion_tokens") for request in server.requests] == [None, 7]
    assert "max_tokens" not in server.requests[1]
    assert err.count("the server takes max_completion_tokens instead of max_tokens") == 1


@pytest.mark.parametrize(
    ("key", "url", "message"),
    [
        ("", None, "OPENAI_API_KEY is empty; set it, or unset it for a server without a key"),
        (" ", None, "OPENAI_API_KEY is empty; set it, or unset it for a server without a key"),
        ("密钥", None, "OPENAI_API_KEY has a character that no key has; copy it again"),
        ("sesame\n", None, "OPENAI_API_KEY has a space or a line break in it or at its end; take it away"),
        ("k", "localhost:8000/v1", "begins with neither http:// nor https://; try http://localhost:8000/v1"),
        ("k", "http://h/v1/chat/completions", "leave out /chat/completions, which is added to it"),
        ("k", "http://", "--endpoint http://: no URL of a server, such as http://host:8000/v1"),
        ("k", "http://h:port/v1", "no URL of a server, such as http://host:8000/v1"),
    ],
)
def test_a_key_or_a_url_that_cannot_be_sent_is_said_before_anything_is_asked(
    ask, server: Server, tmp_path: Path, monkeypatch, key: str, url: str | None, message: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    status, _, err = ask(url=url or server.url)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert server.requests == []
    assert list(tmp_path.iterdir()) == [tmp_path / "questions.jsonl"]


def test_a_question_for_tools_takes_a_request_for_each_answer(
    outcome, server: Server, tmp_path: Path, monkeypatch
) -> None:
    """Calls come without arguments, with broken ones, or as text; the server is busy, or refuses them."""
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)
    weather, two = LEARNT_WITH_TOOLS[:2]

    def calling(*calls: tuple[str, str | None]) -> tuple[int, bytes]:
        sent = [{"id": "x", "type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
        return 200, completion({"content": None, "tool_calls": sent}, "tool_calls")

    def asked(number: int, dialogue: list[dict]) -> list[dict]:
        return [dialogue[0] | {"content": f"第{number}题"}, *dialogue[1:]]

    arguments = json.dumps(HARD_ARGUMENTS)
    text = answer_with_calls("", [call_text("天气", HARD_ARGUMENTS)])
    server.plan = {
        "第0题": [calling(("天气", arguments)), (503, b"busy"), (200, completion({"content": "是21度"}))],
        "第1题": [
            calling(("time", ""), ("天气", '{"城": "x"}')),
            calling(("time", "{}")),
            (200, completion({"content": "十点"})),
        ],
        "第2题": [(200, completion({"content": text})), (200, completion({"content": "二十一度"}))],
        "第3题": [calling(("天气", "{")), (200, completion({"content": "21"}))],
        "第4题": [calling(("天气", "{}")), (200, completion({"content": "21"}))],
        "第5题": [(400, error("no tools here"))],
        "第6题": [calling(("天气", arguments)), (200, completion({"content": "21"}, "length"))],
    }
    dialogues = [asked(0, weather), asked(1, two), *(asked(number, weather) for number in range(2, 7))]
    rows = [{"messages": messages, "tools": TOOLS} for messages in dialogues]
    files = f"--questions {write_rows(tmp_path / 'q.jsonl', rows)} --output {tmp_path / 'out'}"
    how = f"--endpoint {server.url} --model org/other --batch-size 3"
    status, out, err = outcome(tools.main, f"{how} {files}")
    assert status == 0, err
    assert "'第5题' is refused (400: no tools here)" in err
    assert "1 questions refused, of which nothing counts as right." in out
    judged = rows_in(tmp_path / "out")
    is_right = [list(row["is_right"].values()) for row in judged]
    assert is_right == [
        [True, True, True, True, True],
        [True, True, True, True, True],
        [True, True, True, False, False],
        [True, False, False, False, False],
        [True, True, False, True, False],
        [False, False, False, False, False],
        [True, True, True, True, True],
    ]
    assert judged[4]["results"] == ['{"error": "this call has no result"}']
    assert [row["ended"] for row in judged] == [True, True, True, True, True, False, False]
    # What is sent after the calls is the dialogue as the row has it.
    of_second = [request for request in server.requests if request["messages"][0]["content"] == "第1题"]
    sent = [message | {"content": message["content"] or ""} for message in of_second[-1]["messages"]]
    assert sent == json.loads(re.sub(r'"c(\d)"', r'"call_\1"', json.dumps(dialogues[1][:-1])))
    greedy = {"model": "org/other", "temperature": 0, "frequency_penalty": 0, "max_tokens": 256}
    for request in server.requests:
        del request["messages"]
        assert request == greedy | {"tools": TOOLS}


@pytest.mark.slow
def test_ctrl_c_ends_within_two_seconds_and_keeps_what_came(server: Server, tmp_path: Path) -> None:
    server.plan = {row["question"]: [hang] for row in QUESTIONS[1:]}
    questions = write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    command = [sys.executable, "-m", "evaluation.subjective", "ask", "--endpoint", server.url, "--model", "m"]
    command += ["--questions", questions, "--output", str(tmp_path / "answers.jsonl")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ)
    while not (tmp_path / "answers.jsonl.partial").exists() or len(server.requests) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    used = cpu_seconds(process.pid)
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = process.stderr.readline()
    assert time.monotonic() - pressed < 2
    assert said == "stopped with 1 rows answered; the same command goes on from there\n"
    # The rest is the interpreter's own end, which is slow where others use the machine: its work is measured.
    _, status, usage = os.wait4(process.pid, 0)
    assert usage.ru_utime + usage.ru_stime - used < 2
    process.returncode = os.waitstatus_to_exitcode(status)  # so that nobody waits for it again
    assert process.returncode == 130


def cpu_seconds(pid: int) -> float:
    """The time that a process and its threads have computed: fields 14 and 15 of its /proc/PID/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
