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
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from evaluation.completions import (
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


def ask_endpoint(
    url: str,
    request: dict[str, Any],
    questions: dict[int, str],
    journal: Journal,
    *,
    total: int,
    at_a_time: int,
    timeout_s: float,
) -> None:
    """Ask the questions, and keep in `journal` an entry for each, as it comes.

    request: "model" and how to sample, as the endpoint takes it. questions: the text of each row that is
    asked; total: the number of all rows. timeout_s: the longest wait for the first byte of an answer, and
    between two of them. An entry is {"row", "answer", "ended"}, with "tool_call" where the answer is only
    one, and with the reason as "refused" or "failed" where there is no answer.

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

    async def ask_all(self, questions: dict[int, str], at_a_time: int) -> None:
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

    async def ask(self, client: Any, row: int, question: str) -> None:
        """Ask one question until there is an answer, a refusal, or no hope. Raises UnusableEndpoint."""
        wait_s = FIRST_WAIT_S
        no_answer = {"row": row, "answer": "", "ended": False}
        for retries_left in range(RETRIES, -1, -1):
            try:
                entry = {"row": row} | await self.send(client, question)
            except RefusedQuestion as refusal:
                entry = no_answer | {"refused": str(refusal)}
                self.tell(f"{question[:40]!r} is refused ({refusal})")
            except FailedRequest as failure:
                if retries_left:
                    await asyncio.sleep(min(max(wait_s, failure.wait_s), self.timeout_s))
                    wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                    continue
                if failure.nobody_is_there:
                    raise UnusableEndpoint(str(failure)) from None
                self.failed.append(no_answer | {"failed": str(failure)})
                if len(self.failed) >= FAILURES_IN_A_ROW:
                    raise UnusableEndpoint(str(failure)) from None
                self.tell(f"{question[:40]!r} has no answer ({failure})")
                return
            self.keep([*self.failed, entry])
            self.failed.clear()
            return

    async def send(self, client: Any, question: str) -> dict[str, Any]:
        """The entry of an answer. Raises RefusedQuestion, FailedRequest or UnusableEndpoint."""
        import openai

        messages = [{"role": "user", "content": question}]
        sent = dict(self.request)
        try:
            raw = await client.chat.completions.with_raw_response.create(messages=messages, **sent)
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
