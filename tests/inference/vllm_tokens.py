"""The greedy tokens of a saved model behind vLLM's server, held to ours on ten prompts.

scripts/test_vllm.sh starts the server, in fp32 as here, and this:

python -m tests.inference.vllm_tokens --model checkpoints/demo/model --endpoint http://127.0.0.1:8000/v1
"""

import sys

import click
import openai
import torch
from transformers import PreTrainedModel

from inference.generation import load
from tests.conftest import SINGLE_TURN
from tests.inference.prompts import TYPED, messages_of
from training.data.encoded import read_conversations
from training.text.conversation import Conversation, Turn
from training.text.encoding import encode_prompt

# The prompts of the sample data, which the demo's model knows by heart, and those with typed special tokens.
TAUGHT = 5
MAX_NEW_TOKENS = 100


def prompts() -> list[Conversation]:
    known = [conversation for _, conversation in read_conversations(str(SINGLE_TURN))][:TAUGHT]
    return [*(Conversation((Turn(taught.turns[0].human),), taught.system) for taught in known), *TYPED]


def our_answer(model: PreTrainedModel, prompt_ids: list[int]) -> list[int]:
    greedy = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": MAX_NEW_TOKENS}
    return model.generate(torch.tensor([prompt_ids]), **greedy)[0, len(prompt_ids) :].tolist()


@click.command()
@click.option("--model", "path", required=True, help="The saved model, as the server was given it.")
@click.option("--endpoint", required=True, help="URL of vLLM's server, up to /v1.")
def main(path: str, endpoint: str) -> None:
    """Print a line for each prompt; the exit status is 1 where ids or text differ from ours."""
    model, tokenizer = load(path, dtype=torch.float32, device="cpu")
    client = openai.OpenAI(base_url=endpoint, api_key="none", max_retries=0, timeout=300)
    greedy = {"model": path, "temperature": 0, "max_tokens": MAX_NEW_TOKENS}
    differ = 0
    for prompt in prompts():
        messages = messages_of(prompt)
        more = {"repetition_penalty": 1.0, "return_token_ids": True}
        whole = client.chat.completions.create(messages=messages, extra_body=more, **greedy)
        stream = client.chat.completions.create(messages=messages, extra_body=more, stream=True, **greedy)
        pieces = [choice.delta.content or "" for piece in stream for choice in piece.choices]

        prompt_ids = encode_prompt(prompt, tokenizer)
        answer_ids = our_answer(model, prompt_ids)
        text = tokenizer.decode(answer_ids, skip_special_tokens=True)
        equal = {
            "prompt ids": whole.prompt_token_ids == prompt_ids,
            "answer ids": whole.choices[0].token_ids == answer_ids,
            "text": whole.choices[0].message.content == text,
            "streamed text": "".join(pieces) == text,
        }
        differing = [what for what, is_equal in equal.items() if not is_equal]
        differ += bool(differing)
        verdict = f"DIFFERENT: {', '.join(differing)}" if differing else "equal"
        print(
            f"{verdict}: {len(prompt_ids)} + {len(answer_ids)} tokens, {whole.choices[0].finish_reason}: "
            f"{prompt.turns[-1].human[:40]!r} -> {text[:40]!r}"
        )
    print(f"{len(prompts()) - differ} of {len(prompts())} prompts have our greedy tokens, whole and streamed")
    sys.exit(min(differ, 1))


if __name__ == "__main__":
    main()
