"""How fast a Bloom answers: transformers' own, ours, and ours in 8 and 4 bits, each in a process of its own.

    python -m tests.benchmarks.generate

A random Bloom (hidden 1024, 24 layers, 16 heads, 250,880 tokens), greedy. The bound is the machine's memory
bandwidth, measured in the same process: a token needs all weights read once. "Turn 1" and "turn 10" are the
times to the first token of an answer of `stream` in a dialogue that grows to about 1,000 tokens.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import click
import torch
from transformers import BloomConfig, GenerationConfig, PreTrainedModel
from transformers import BloomForCausalLM as LibraryBloom
from transformers.utils.logging import disable_progress_bar

from inference.generation import quantization_config, stream
from inference.kv_cache import KVCache
from training.card.decoding import TokenTimes
from training.card.timing import forget_peak, peak_bytes, seconds_of, the_device
from training.common.errors import run_command
from training.model.bloom import BloomForCausalLM
from training.text.conversation import Conversation, Turn
from training.text.tokenizer import teach_to_chat
from training.tiny_bloom import train_tokenizer, training_texts

HIDDEN, LAYERS, HEADS, VOCABULARY = 1024, 24, 16, 250_880
WAYS = ("plain", "ours", "8 bits", "4 bits")
TURNS, ANSWER_TOKENS = 10, 12

SAMPLE = Path(__file__).parents[2] / "data" / "yayi_train_example.json"


def save_random_model(directory: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = BloomConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        initializer_range=HIDDEN**-0.5,
    )
    LibraryBloom(config).to(dtype).save_pretrained(directory)


def load(way: str, directory: str) -> PreTrainedModel:
    model_class = LibraryBloom if way == "plain" else BloomForCausalLM
    bits = int(way[0]) if way.endswith("bits") else None
    quantization = quantization_config(bits) if bits else None
    return model_class.from_pretrained(
        directory, dtype="auto", device_map={"": str(the_device())}, quantization_config=quantization
    ).eval()


def bytes_per_second(device: torch.device) -> float:
    """How fast memory is read: the best of a few sums over a GiB."""
    values = torch.ones(2**28, device=device)
    return 4 * len(values) / min(seconds_of(values.sum, device) for _ in range(5))


def generate(model: PreTrainedModel, input_ids: torch.Tensor, tokens: int) -> tuple[float, float, list[int]]:
    """(seconds to the first token, median seconds of each token after it, new ids of the first prompt)."""
    config = GenerationConfig(max_new_tokens=tokens + 1, do_sample=False, eos_token_id=None, pad_token_id=0)
    clock, mask = TokenTimes(), torch.ones_like(input_ids)
    made = model.generate(input_ids, attention_mask=mask, generation_config=config, streamer=clock)
    first, *later = (after - before for before, after in pairwise(clock.times))
    return first, statistics.median(later), made[0, input_ids.shape[1] :].tolist()


def seconds_to_first_token(model: PreTrainedModel) -> list[float]:
    """The seconds to the first token of each turn of a dialogue, and the number of tokens of its last prompt.

    The human says the same in every turn.
    """
    texts = list(training_texts(str(SAMPLE)))
    tokenizer = train_tokenizer(texts)
    teach_to_chat(tokenizer)
    human = " ".join(texts)[:330]
    cache, turns, seconds = KVCache(), (), []
    for _ in range(TURNS):
        prompt = Conversation((*turns, Turn(human)))
        how = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": ANSWER_TOKENS}
        with stream(model, tokenizer, prompt, kv_cache=cache, **how) as answer:
            text = "".join(answer)
        seconds.append(answer.seconds_to_first)
        turns = (*turns, Turn(human, text or "."))
    return [*seconds, answer.prompt_tokens]


def measure(way: str, directory: str, prompt_tokens: int, tokens: int) -> dict:
    model = load(way, directory)
    bandwidth = bytes_per_second(model.device)
    forget_peak(model.device)
    torch.manual_seed(0)
    prompts = torch.randint(0, VOCABULARY, (8, prompt_tokens), device=model.device)
    generate(model, prompts[:1, :2], 2)  # warms up
    found = {}
    for batch_size in (1, 8):
        first, later, ids = generate(model, prompts[:batch_size], tokens)
        found[f"batch {batch_size}"] = batch_size / later
        if batch_size == 1:
            found |= {"first": first, "ids": ids}
    if way == "ours":
        *found["turns"], found["dialogue"] = seconds_to_first_token(model)
    found["peak"] = peak_bytes(model.device)
    found["bandwidth"] = max(bandwidth, bytes_per_second(model.device))
    found["weights"] = model.get_memory_footprint()
    return found


def measure_in_process(way: str, arguments: list[str]) -> dict:
    """Run `measure` in a process of its own, and print its line of the table."""
    command = [sys.executable, "-m", "tests.benchmarks.generate", *arguments, "--way", way]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    share = found["batch 1"] * found["weights"] / found["bandwidth"]
    print(
        f"{way:8}{found['batch 1']:10.1f}{share:10.0%}{found['batch 8']:12.1f}{found['first']:10.2f} "
        f"{found['weights'] / 1e9:6.2f} GB {found['peak'] / 1e9:6.2f} GB",
        flush=True,
    )
    return found


@click.command(context_settings={"show_default": True})
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=50)
@click.option("--tokens", type=click.IntRange(min=1), default=24, help="Tokens to generate after the first.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16")
@click.option("--way", type=click.Choice(WAYS), multiple=True, default=WAYS)
@click.option(
    "--directory", help="Used by this benchmark itself: measure one way on this model, and print JSON."
)
def main(prompt_tokens: int, tokens: int, dtype: str, way: tuple[str, ...], directory: str | None) -> None:
    """Print a table of tokens a second, the time to the first, and memory."""
    disable_progress_bar()
    if directory:
        print(json.dumps(measure(way[0], directory, prompt_tokens, tokens)))
        return
    with tempfile.TemporaryDirectory() as directory:
        save_random_model(directory, getattr(torch, dtype))
        arguments = ["--prompt-tokens", str(prompt_tokens), "--tokens", str(tokens), "--directory", directory]
        print(f"{dtype}, {torch.get_num_threads()} threads, prompt of {prompt_tokens} tokens, greedy")
        print("          tokens/s  of bound  batch of 8  first, s   weights      peak", flush=True)
        results = {name: measure_in_process(name, arguments) for name in way}
    for name, found in results.items():
        if "turns" in found:
            print(
                f"{name}: turn 1 {found['turns'][0]:.2f} s, turn 10 {found['turns'][-1]:.2f} s to the first "
                f"token ({found['dialogue']:,} tokens by then)"
            )
    if {"plain", "ours"} <= results.keys():
        ours, plain = results["ours"], results["plain"]
        equal = sum(one == other for one, other in zip(ours["ids"], plain["ids"], strict=True))
        print(
            f"ours is {ours['batch 1'] / plain['batch 1']:.2f} times plain at batch 1, "
            f"{ours['batch 8'] / plain['batch 8']:.2f} times at 8; {equal} of {len(ours['ids'])} tokens equal"
        )


if __name__ == "__main__":
    run_command(main)
