"""A tiny random Bloom and its tokenizer: a base model for the demo and the tests.

python -m training.tiny_bloom --data-path data/yayi_train_example.json --output-dir checkpoints/tiny-bloom
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from training.common.command_line import PathOrName
from training.common.errors import run_command
from training.common.files import check_empty, write_failure_refused
from training.consts import INTRO
from training.data.encoded import read_conversations
from training.model.save import save_model

# BLOOM's special tokens in the order of their ids, and the words that its tokenizer never splits across.
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]
WORD = " ?[^(\\s|[.,!?…。，、।۔،])]+"

# A model of these sizes gives back nearly all the sample data after the 20 epochs of scripts/demo.sh; twice
# that rate is too high. The heads are 32 wide: vLLM takes no narrower ones on a processor. BLOOM's own
# initializer range, 0.02, is too small for so narrow a model.
HIDDEN_SIZE = 128
LAYERS = 2
HEADS = 4
INITIALIZER_RANGE = 0.07
VOCABULARY = 2000

# Embedding rows beyond the tokenizer's tokens; BLOOM has 200 of them.
SPARE_ROWS = 8


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE with BLOOM's special tokens and pre-tokenizer, of at most `vocabulary` tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
    )


def random_bloom(embedding_rows: int, seed: int = 0) -> BloomForCausalLM:
    """A randomly initialised Bloom in fp32 with that number of embedding rows."""
    torch.manual_seed(seed)
    return BloomForCausalLM(
        BloomConfig(
            vocab_size=embedding_rows,
            hidden_size=HIDDEN_SIZE,
            n_layer=LAYERS,
            n_head=HEADS,
            initializer_range=INITIALIZER_RANGE,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            pad_token_id=SPECIAL_TOKENS.index("<pad>"),
        )
    )


def training_texts(data_path: str) -> Iterator[str]:
    """Every text that training sees in a data file, repetitions included."""
    for _, conversation in read_conversations(data_path):
        yield conversation.system or INTRO
        yield from conversation.tools
        for turn in conversation.turns:
            yield from turn.texts()


@click.command()
@click.option(
    "--data-path", type=PathOrName(), required=True, help="File whose texts the tokenizer is trained on."
)
@click.option(
    "--output-dir", type=PathOrName(), required=True, help="Directory to write; must not hold anything yet."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the random weights.")
def main(data_path: str, output_dir: str, seed: int) -> None:
    """Make a tiny random Bloom and a tokenizer trained on DATA-PATH."""
    check_empty(Path(output_dir), "give another --output-dir, or remove it")
    tokenizer = train_tokenizer(training_texts(data_path))
    model = random_bloom(len(tokenizer) + SPARE_ROWS, seed)
    with write_failure_refused(output_dir, "make room, or give another --output-dir"):
        save_model(model, tokenizer, output_dir)
    print(f"{output_dir}: a Bloom of {model.num_parameters():,} random weights, {len(tokenizer)} tokens")


if __name__ == "__main__":
    run_command(main)
