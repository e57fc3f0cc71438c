"""Tiny random base models of other architectures than BLOOM's, with tokenizers of their kinds."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from tests.conftest import SINGLE_TURN
from training.model.save import save_model
from training.tiny_bloom import training_texts

VOCABULARY = 1200

# Llama 2's special tokens; text that has no token of its own, such as a newline, is spelt in bytes.
LLAMA_SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

SIZE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
}


def trained_bpe(
    texts: Iterable[str], pre_tokenizer: pre_tokenizers.PreTokenizer, **how
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges of a BPE that is trained on texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False, **how)
    backend.train_from_iterator(texts, trainer)
    trained = json.loads(backend.to_str())["model"]
    return trained["vocab"], [tuple(merge) for merge in trained["merges"]]


def byte_level(regex: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def sample_texts() -> list[str]:
    """The sample texts, and the sequences of punctuation and newlines that large corpora have."""
    return [*training_texts(str(SINGLE_TURN)), *[":\n", ":\n\n", "。\n\n", ".\n\n", "\n\n"] * 50]


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer like Llama 2's: words begin with ▁, and each text gets one more ▁ at its start."""
    lines = [line for text in sample_texts() for line in text.splitlines()]
    pieces, merges = trained_bpe(lines, pre_tokenizers.Metaspace(), limit_alphabet=500)
    vocabulary = {token: index for index, token in enumerate([*LLAMA_SPECIAL, *BYTES, *pieces])}
    return LlamaTokenizer(vocabulary, merges, add_bos_token=True)


def old_llama_tokenizer() -> PreTrainedTokenizerFast:
    """Llama 2's tokenizer in older files on the hub: the normalizer puts ▁ before every piece of text."""
    tokenizer = llama_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=True) for token in LLAMA_SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokenizer.special_tokens_map)


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes that merges punctuation with newlines after it, normalizes, and has no bos."""
    vocabulary, merges = trained_bpe(
        sample_texts(), byte_level(PRETOKENIZE_REGEX), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer = Qwen2Tokenizer(vocabulary, merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes like Qwen's, whose post-processor puts its bos before every text."""
    tokenizer = qwen_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = None
    backend.add_special_tokens(["<|begin_of_text|>"])
    bos = backend.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>")


TOKENIZERS = {
    "llama": llama_tokenizer,
    "old llama": old_llama_tokenizer,
    "llama 3": llama3_tokenizer,
    "qwen": qwen_tokenizer,
}


def make_llama(directory: Path) -> str:
    """A tiny Llama: its head is a matrix of its own, and there is no spare embedding row for new tokens."""
    tokenizer = llama_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SIZE))
    save_model(model, tokenizer, directory)
    return str(directory)


def make_gpt2(directory: Path, positions: int) -> str:
    """A tiny GPT-2, which has an embedding for each of so many positions and fails at a later one.

    It has no control tokens, and a chat template that is not ours.
    """
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=positions, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.1,
    )  # fmt: skip
    save_model(GPT2LMHeadModel(config), tokenizer, directory)
    return str(directory)


def make_qwen(directory: Path) -> str:
    """A tiny Qwen: its head is the embedding, which has more rows than the tokenizer has tokens."""
    tokenizer = qwen_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=len(tokenizer) + 64, tie_word_embeddings=True, **SIZE)
    save_model(Qwen2ForCausalLM(config), tokenizer, directory)
    return str(directory)
