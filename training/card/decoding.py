"""Part 4: how fast tokens follow each other, beside what reading the weights and the KV cache would allow."""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from transformers import BloomForCausalLM as LibraryBloom
from transformers import DynamicCache, GenerationConfig
from transformers.generation import BaseStreamer

from training.card.page import Check
from training.card.profiled import where_time_goes
from training.card.scale import bloom_of
from training.card.timing import forget_peak, peak_text
from training.common.console import bytes_text
from training.common.files import free_bytes
from training.model.bloom import BloomForCausalLM

# The share of the speed of reading that one answer in bf16 is to reach while the card works. It also waits
# for the host, which gives it some hundreds of small operations for each token.
SHARE_OF_READING = 0.4

# Ours is not to be slower than the library, but for a chance.
NOT_SLOWER = 0.95


class TokenTimes(BaseStreamer):
    """Notes when the prompt was handed over, and when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        value.cpu()  # on a card, waits for it
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def measure_decoding(check: Check) -> None:
    scale = check.scale
    check.add("model", str(scale.decoding), note="greedy, by transformers' generate")
    forget_peak(check.device)
    model = bloom_of(scale.decoding, BloomForCausalLM, torch.bfloat16, check.device).eval()
    ours = _measure_all(check, model, "ours, bf16", is_judged=True)
    del model
    forget_peak(check.device)
    library = bloom_of(scale.decoding, LibraryBloom, torch.bfloat16, check.device).eval()
    case = (1, scale.contexts[0])
    seconds = _measure(check, library, "the library, bf16", *case)
    what = f"{_name(*case)}: ours beside the library"
    check.add(what, seconds / ours[case], "times as fast", at_least=NOT_SLOWER, of_card=True)
    del library
    forget_peak(check.device)
    _measure_quantized(check)


def _name(answers: int, context: int) -> str:
    return f"{answers} at a time, after {context:,} tokens"


def _measure_all(
    check: Check, model: LibraryBloom, name: str, is_judged: bool
) -> dict[tuple[int, int], float]:
    """The seconds of a token, by the number of answers and the context."""
    found = {}
    for answers in check.scale.answers:
        for context in check.scale.contexts:
            found[answers, context] = _measure(check, model, name, answers, context, is_judged)
    return found


@torch.no_grad()
def _measure(
    check: Check, model: LibraryBloom, name: str, answers: int, context: int, is_judged: bool = False
) -> float:
    """Add the speed; returns the seconds from one token (of each answer) to the next."""
    random = torch.Generator(check.device).manual_seed(0)
    vocabulary = model.config.vocab_size
    input_ids = torch.randint(vocabulary, (answers, context), generator=random, device=check.device)
    new = check.scale.new_tokens
    config = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    for _ in range(2):  # the first time sets things up
        forget_peak(check.device)
        clock, mask = TokenTimes(), torch.ones_like(input_ids)
        model.generate(input_ids, attention_mask=mask, generation_config=config, streamer=clock)
    first, *later = (after - before for before, after in pairwise(clock.times))
    seconds = statistics.median(later)
    what = f"{name}, {_name(answers, context)}"
    note = f"{1000 * seconds:.3g} ms a token, {1000 * first:.3g} ms to the first{peak_text(check.device)}"
    check.add(what, answers / seconds, "tokens/s", note=note)
    if check.bytes_per_second:
        hidden, layers = model.config.hidden_size, model.config.num_hidden_layers
        cached = answers * (context + new / 2) * layers * 2 * hidden * torch.bfloat16.itemsize
        share = 100 * (model.get_memory_footprint() + cached) / check.bytes_per_second / seconds
        check.add(f"{what}: of what reading alone allows", share, "%")
        # Several answers compute more and read no more weights, so that only one is held to the reading.
        if is_judged and answers == 1:
            spent = where_time_goes(next_token(model, input_ids), seconds, check.on_card)
            check.add(f"{what}: where the time goes", spent.shares)
            if spent.busy:
                share *= seconds / spent.busy
                what += ": of what reading alone allows, while the card works"
                check.add(what, share, "%", at_least=100 * SHARE_OF_READING, of_card=True)
    return seconds


def next_token(model: LibraryBloom, input_ids: torch.Tensor) -> Callable[[], object]:
    """A function that computes one more token after these, (answers, tokens), with their keys and values."""
    cache = DynamicCache(config=model.config)
    model(input_ids=input_ids, past_key_values=cache, logits_to_keep=1)
    return partial(model, input_ids=input_ids[:, -1:], past_key_values=cache, logits_to_keep=1)


def _measure_quantized(check: Check) -> None:
    """The same in 8 and 4 bits, loaded as `inference` loads a model."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        check.add("8 and 4 bits", "not measured", note="bitsandbytes is not installed")
        return
    from training.model.lora import quantization_config

    sizes = check.scale.decoding._replace(layers=check.scale.quantized_layers)
    case = (1, check.scale.contexts[0])
    with tempfile.TemporaryDirectory(dir=check.directory) as directory:
        model = bloom_of(sizes, BloomForCausalLM, torch.bfloat16, check.device).eval()
        needed = 1.1 * model.get_memory_footprint()
        if free_bytes(check.directory) < needed:
            note = f"{check.directory} has no {bytes_text(needed)} free for the model to be loaded from"
            check.add("8 and 4 bits", "not measured", note=note)
            return
        model.save_pretrained(directory)
        if sizes.layers < check.scale.decoding.layers:
            check.add("model in 8 and 4 bits", str(sizes))
            _measure(check, model, "ours, bf16", *case)
        del model
        for bits in (8, 4):
            forget_peak(check.device)
            model = BloomForCausalLM.from_pretrained(
                directory,
                dtype=torch.bfloat16,
                device_map={"": str(check.device)},
                quantization_config=quantization_config(bits),
            ).eval()
            _measure(check, model, f"ours, {bits} bits", *case)
            del model
