"""vLLM's hermes parser finds the calls of `tests.tool_calls`. Run in vLLM's environment:

python -m tests.tool_calls > answers.jsonl
.venv-vllm/bin/python tests/inference/vllm_tool_calls.py MODEL answers.jsonl
"""

import json
import sys
from typing import Any

from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser


def main(model: str, answers: str) -> None:
    """Exits with status 1, by an assertion, at the first answer whose calls are not found."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    request = ChatCompletionRequest(messages=[{"role": "user", "content": "q"}], model=model)
    count = 0
    with open(answers, encoding="utf-8") as file:
        for line in file:
            case = json.loads(line)
            said = f"\n{case['answer']}\n\n"
            found = Hermes2ProToolParser(tokenizer).extract_tool_calls(said, request)
            assert [_call(call.function) for call in found.tool_calls] == case["calls"], said
            count += 1
    assert count
    print(f"vLLM's hermes parser finds the calls of all {count} answers")


def _call(function: Any) -> dict[str, Any]:
    return {"name": function.name, "arguments": json.loads(function.arguments)}


if __name__ == "__main__":
    main(*sys.argv[1:])
