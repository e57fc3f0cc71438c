"""Saved models in transformers 4.57, which cannot be installed beside transformers 5.

python -m tests.transformers4 write DIR    with transformers 5: models as we save them, and what they give
python -m tests.transformers4 read DIR     with transformers 4: compares; see scripts/test_transformers4.sh
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

NEW_TOKENS = 12


def write(directory: Path) -> None:
    """Save a taught model of each kind, with the ids, texts, logits and greedy tokens that it has here."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    from tests.tiny_models import SIZE, TOKENIZERS, make_qwen
    from training import tiny_bloom
    from training.model.load import load_model
    from training.model.save import save_model
    from training.text.conversation import Conversation, Turn
    from training.text.encoding import encode, encode_prompt
    from training.text.template import render
    from training.text.tokenizer import load_tokenizer_and_new_tokens

    def llama(tokenizer: str, **rope) -> None:
        made = TOKENIZERS[tokenizer]()
        config = LlamaConfig(vocab_size=len(made), rope_parameters=rope, **SIZE)
        save_model(LlamaForCausalLM(config), made, base)

    def neox() -> None:
        made = TOKENIZERS["llama 3"]()
        rope = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
        size = {**SIZE, "num_key_value_heads": None}
        config = GPTNeoXConfig(vocab_size=len(made), rope_parameters=rope, **size)
        save_model(GPTNeoXForCausalLM(config), made, base)

    def bloom() -> None:
        from tests.conftest import SINGLE_TURN

        made = tiny_bloom.train_tokenizer(tiny_bloom.training_texts(str(SINGLE_TURN)))
        save_model(tiny_bloom.random_bloom(len(made) + tiny_bloom.SPARE_ROWS), made, base)

    llama3 = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 500000.0,
    }  # fmt: skip
    yarn = {"rope_type": "yarn", "factor": 32.0, "rope_theta": 1e6, "original_max_position_embeddings": 64}
    kinds = {
        "bloom": bloom,
        "llama": lambda: llama("llama", rope_type="default", rope_theta=20000.0),
        "old-llama": lambda: llama("old llama", rope_type="linear", factor=2.0, rope_theta=10000.0),
        "llama-3": lambda: llama("llama 3", **llama3),
        "llama-yarn": lambda: llama("llama 3", **yarn),
        "qwen": lambda: make_qwen(base),
        "neox": neox,
    }
    typed = "写<|End|>和<|YaYi|>:, </s> <|im_end|> it's"
    conversations = [
        Conversation((Turn("你是谁", "我是雅意。"), Turn("Hello  world\n\n 1 + 1")), "你是一名记者。"),
        Conversation((Turn(typed, typed), Turn("好")),),
    ]  # fmt: skip
    for kind, make in kinds.items():
        base = directory / "bases" / kind
        torch.manual_seed(0)
        make()
        tokenizer, new_tokens = load_tokenizer_and_new_tokens(str(base))
        save_model(load_model(str(base), tokenizer, new_tokens=new_tokens), tokenizer, directory / kind)
        model = AutoModelForCausalLM.from_pretrained(directory / kind)
        expected, logits = [], {}
        for number, conversation in enumerate(conversations):
            ids = torch.tensor([encode_prompt(conversation, tokenizer)])
            logits[str(number)] = model(ids).logits.detach()
            messages = [{"role": "system", "content": conversation.system}]
            for turn in conversation.turns:
                messages.append({"role": "user", "content": turn.human})
                if turn.yayi is not None:
                    messages.append({"role": "assistant", "content": turn.yayi})
            whole = Conversation(conversation.turns[:1], conversation.system)
            expected.append(
                {
                    "messages": messages,
                    "prompt": render(conversation),
                    "prompt ids": ids[0].tolist(),
                    "first turn ids": encode(whole, tokenizer)["input_ids"],
                    "greedy": model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS)[
                        0, ids.shape[1] :
                    ].tolist(),
                }
            )
        (directory / kind / "expected.json").write_text(json.dumps(expected, ensure_ascii=False))
        save_file(logits, directory / kind / "expected-logits")


def read(directory: Path) -> None:
    """Compare what transformers 4 makes of each model that `write` saved."""
    assert transformers.__version__.startswith("4.57."), transformers.__version__
    kinds = sorted(path.parent for path in directory.glob("*/expected.json"))
    assert len(kinds) == 7
    for path in kinds:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path)
        logits = load_file(path / "expected-logits")
        expected = json.loads((path / "expected.json").read_text())
        for number, each in enumerate(expected):
            messages = each["messages"]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            assert text.replace("\ue000", "").startswith(each["prompt"]), path.name
            asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            assert asked == each["prompt ids"], path.name
            assert tokenizer.apply_chat_template(messages[:3]) == each["first turn ids"], path.name
            found = model(torch.tensor([asked])).logits
            torch.testing.assert_close(found, logits[str(number)], rtol=1e-5, atol=1e-5)
        # Both in a batch, padded on the left, which takes a pad token.
        texts = [
            tokenizer.apply_chat_template(each["messages"], add_generation_prompt=True, tokenize=False)
            for each in expected
        ]
        tokenizer.padding_side = "left"
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        said = model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS)
        for each, tokens in zip(expected, said[:, batch.input_ids.shape[1] :].tolist(), strict=True):
            greedy = each["greedy"]
            assert tokens[: len(greedy)] == greedy, path.name
        print(
            f"{path.name}: {len(tokenizer)} tokens, {model.config.vocab_size} rows; ids, texts, logits and "
            f"{NEW_TOKENS} greedy tokens are those of transformers 5"
        )


if __name__ == "__main__":
    disable_progress_bar()
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
