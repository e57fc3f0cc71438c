"""Answers of a model behind an OpenAI-compatible endpoint. The key, if it wants one, is in OPENAI_API_KEY.

Several questions are asked at the same time, and each answer is kept as it comes. A question that is refused,
and one that fails though others are answered, is recorded as such and stepped over.
"""

import asyncio
import gc
import os
import re
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from evaluation.completions import (
    Completion,
    FailedRequest,
    RefusedQuestion,
    UnusableEndpoint,
    failure_of,
    read_completion,
)
from inference.resumable import SAY_EVERY_S, Journal
from training.common.console import say
from training.common.errors import UserError, first_line

KEY_VARIABLE = "OPENAI_API_KEY"

# How often a request is sent again when the server was too busy or the connection failed; the seconds before
# the first time, which double each time, and the most.
RETRIES = 5
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0

# So many questions that fail with no answer between them mean that the server is out of order.
FAILURES_IN_A_ROW = 10


def check_endpoint(url: str) -> str:
    """The key for an endpoint. Raises UserError for a URL or a key that no request can be sent with."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--endpoint {url}: begins with neither http:// nor https://; try http://{url}")
    try:
        parts = urllib.parse.urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        has_host = False
    if not has_host:
        raise UserError(f"--endpoint {url}: no URL of a server, such as http://host:8000/v1")
    if url.rstrip("/").endswith("/chat/completions"):
        raise UserError(f"--endpoint {url}: leave out /chat/completions, which is added to it")
    key = os.environ.get(KEY_VARIABLE)
    if key is None:
        return "none"
    problem = None
    if not key.strip():
        problem = "is empty; set it, or unset it for a server without a key"
    elif not key.isascii():
        problem = "has a character that no key has; copy it again"
    elif key != key.strip() or any(character.isspace() for character in key):
        problem = "has a space or a line break in it or at its end; take it away"
    if problem:
        raise UserError(f"{KEY_VARIABLE} {problem}")
    return key


class EndpointQuestion(Protocol):
    """A question for a server, which may take several requests."""

    @property
    def text(self) -> str:
        """What is asked, for messages about it."""
        ...

    def request(self) -> dict[str, Any]:
        """What the next request has beside the model and how to sample: "messages", for one."""
        ...

    async def take(self, completion: Completion) -> dict[str, Any] | None:
        """The entry for the journal, without its row, or None where there is another request to send."""
        ...


class PlainQuestion(NamedTuple):
    """A question that is answered at once."""

    text: str

    def request(self) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": self.text}]}

    async def take(self, completion: Completion) -> dict[str, Any]:
        entry = {"answer": completion.answer, "ended": completion.ended}
        return entry | {"tool_call": True} if completion.tool_calls and not completion.answer else entry


def ask_endpoint(
    url: str,
    request: dict[str, Any],
    questions: Mapping[int, EndpointQuestion],
    journal: Journal,
    *,
    total: int,
    at_a_time: int,
    timeout_s: float,
) -> None:
    """Ask the questions, and keep in `journal` an entry for each, as it comes.

    request: "model" and how to sample, as the endpoint takes it. questions: that of each row that is
    asked; total: the number of all rows. timeout_s: the longest wait for the first byte of an answer, and
    between two of them. An entry has "row" and what the question makes of an answer; where there is none,
    it is {"row", "answer", "ended"}, with the reason as "refused" or "failed".

    Raises UserError for a server that cannot be reached or answers nothing.
    """
    with tqdm(
        total=total, initial=total - len(questions), unit="row", disable=None, dynamic_ncols=True
    ) as bar:
        run = _EndpointRun(url, request, journal, timeout_s, bar)
        if journal.answers:
            run.tell(f"going on with {len(journal.answers):,} of {total:,} rows answered")
        try:
            asyncio.run(run.ask_all(questions, at_a_time))
        except UnusableEndpoint as error:
            raise UserError(
                f"{url}: {request['model']} does not answer ({error}); what it has answered is kept, and the "
                "same command goes on from there"
            ) from None
        except KeyboardInterrupt:
            count = len(journal.answers)
            run.tell(f"stopped with {count:,} rows answered; the same command goes on from there")
            gc.freeze()  # or the process would look through all that is imported before it ends, for seconds
            raise


class _EndpointRun:
    """The questions of one command on their way to the server, and the answers on that to the journal."""

    def __init__(
        self, url: str, request: dict[str, Any], journal: Journal, timeout_s: float, bar: tqdm
    ) -> None:
        self.url, self.request, self.journal, self.timeout_s, self.bar = url, request, journal, timeout_s, bar
        self.kept_at = self.said_at = time.perf_counter()
        # The entries of questions that failed since the last answer.
        self.failed: list[dict[str, Any]] = []

    def tell(self, line: str) -> None:
        self.bar.clear()
        say(line, on_stderr=True)

    async def ask_all(self, questions: Mapping[int, EndpointQuestion], at_a_time: int) -> None:
        """Ask the questions, `at_a_time` of them at once. Raises UnusableEndpoint."""
        import openai  # takes seconds, which a model that is loaded here does without

        rows = iter(questions)
        timeout = openai.Timeout(self.timeout_s, pool=None)
        async with openai.AsyncOpenAI(
            base_url=self.url, api_key=check_endpoint(self.url), max_retries=0, timeout=timeout
        ) as client:

            async def ask_one_after_another() -> None:
                for row in rows:
                    await self.ask(client, row, questions[row])

            tasks = [asyncio.create_task(ask_one_after_another()) for _ in range(at_a_time)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        if self.failed and not self.journal.answers:
            raise UnusableEndpoint(self.failed[0]["failed"])
        self.keep(self.failed)

    async def ask(self, client: Any, row: int, question: EndpointQuestion) -> None:
        """Ask one question until there is an answer, a refusal, or no hope. Raises UnusableEndpoint."""
        no_answer = {"row": row, "answer": "", "ended": False}
        try:
            while (taken := await question.take(await self.complete(client, question.request()))) is None:
                pass
            entry = {"row": row} | taken
        except RefusedQuestion as refusal:
            entry = no_answer | {"refused": str(refusal)}
            self.tell(f"{question.text[:40]!r} is refused ({refusal})")
        except FailedRequest as failure:
            self.failed.append(no_answer | {"failed": str(failure)})
            if failure.nobody_is_there or len(self.failed) >= FAILURES_IN_A_ROW:
                raise UnusableEndpoint(str(failure)) from None
            self.tell(f"{question.text[:40]!r} has no answer ({failure})")
            return
        self.keep([*self.failed, entry])
        self.failed.clear()

    async def complete(self, client: Any, question: dict[str, Any]) -> Completion:
        """The answer to one request, which is sent again while that may help.

        Raises RefusedQuestion, FailedRequest or UnusableEndpoint.
        """
        wait_s = FIRST_WAIT_S
        for _ in range(RETRIES):
            try:
                return await self.send(client, question)
            except FailedRequest as failure:
                await asyncio.sleep(min(max(wait_s, failure.wait_s), self.timeout_s))
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        return await self.send(client, question)

    async def send(self, client: Any, question: dict[str, Any]) -> Completion:
        """The answer to a request. Raises RefusedQuestion, FailedRequest or UnusableEndpoint."""
        import openai

        sent = dict(self.request)
        try:
            raw = await client.chat.completions.with_raw_response.create(**question, **sent)
            return read_completion(raw.http_response.text)
        except openai.APIStatusError as error:
            response = error.response
            if response.status_code == 400 and "max_completion_tokens" in response.text:
                self.name_tokens_otherwise()
                if self.request != sent:
                    return await self.send(client, question)
            wait = response.headers.get("retry-after", "")
            wait_s = float(wait) if re.fullmatch(r"\d+(\.\d+)?", wait) else 0
            raise failure_of(response.status_code, response.text, wait_s) from None
        except openai.APITimeoutError:
            raise FailedRequest(f"nothing was sent for {self.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            is_gone = type(error.__cause__).__name__ == "ConnectError"
            raise FailedRequest(first_line(error), nobody_is_there=is_gone) from None

    def name_tokens_otherwise(self) -> None:
        """Send the limit of an answer's length as `max_completion_tokens` from now on."""
        if "max_tokens" in self.request:
            self.request["max_completion_tokens"] = self.request.pop("max_tokens")
            self.tell("the server takes max_completion_tokens instead of max_tokens")

    def keep(self, entries: Sequence[dict[str, Any]]) -> None:
        """Keep entries in the journal, with the time since the last ones."""
        now = time.perf_counter()
        if entries:
            self.journal.add(entries, now - self.kept_at)
            self.bar.update(len(entries))
        self.kept_at = now
        if self.bar.disable and now - self.said_at >= SAY_EVERY_S:
            self.said_at = now
            self.tell(f"{len(self.journal.answers):,} of {self.bar.total:,} rows answered")
