"""Answers of a model behind an OpenAI-compatible endpoint. The key, if it wants one, is in OPENAI_API_KEY."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from training.common.errors import UserError, first_line

# How often a request is sent again when the server was too busy or the connection failed.
RETRIES = 5


def ask_endpoint(
    url: str, model: str, questions: Sequence[str], sampling: dict[str, Any]
) -> list[dict[str, Any]]:
    """{"answer", "ended"} for each question; all are asked at the same time.

    ended: whether the model ended the answer itself. sampling: temperature, top_p and max_tokens, as the
    endpoint takes them. Raises UserError for a server that cannot be reached, refuses, or answers with
    something else.
    """
    import openai  # takes seconds, which a model that is loaded here does without

    client = openai.OpenAI(
        base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=RETRIES
    )

    def answer(question: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        choice = client.chat.completions.create(model=model, messages=messages, **sampling).choices[0]
        return {"answer": choice.message.content or "", "ended": choice.finish_reason == "stop"}

    try:
        with client, ThreadPoolExecutor(len(questions)) as threads:
            return list(threads.map(answer, questions))
    except (openai.OpenAIError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{url}: {model} does not answer ({first_line(error)}); what it has answered is kept, and the "
            "same command goes on from there"
        ) from None
