"""Part 6: what several cards exchange in a second, and how much faster they train than one."""

import json
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing

from training.card.page import Check, NotPossibleHere
from training.card.scale import Batch, Scale, bloom_of, on_device, random_rows
from training.card.timing import median_seconds, wait_for
from training.data.collate import collate
from training.model.bloom import BloomForCausalLM

# Bytes of the tensor that the cards add up, and how often they do.
EXCHANGED = {"cuda": 2**28, "cpu": 2**20}
REPEATED = 5

# How long one waits for another.
PATIENCE = timedelta(minutes=2)

# The speed that all cards together are to have, as a share of so many times the speed of one. The exchange
# follows the backward pass here; a run has part of it done meanwhile.
SHARE_OF_ALL = 0.7


def measure_several_cards(check: Check) -> None:
    count = torch.cuda.device_count() if check.on_card else check.scale.processes
    if count < 2:
        raise NotPossibleHere(
            "there is one card, and two are needed" if check.on_card else "there is no card"
        )
    if check.on_card:
        _add_copies(check, count)
    else:
        check.add("cards", f"none: {count} processes on the CPU, over gloo")
    with tempfile.TemporaryDirectory(dir=check.directory) as directory:
        arguments = (count, check.device.type, check.scale, directory)
        try:
            multiprocessing.spawn(measure_rank, args=arguments, nprocs=count)
        except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
            # Its text is a traceback, which ends in what is wrong.
            raise RuntimeError(str(error).strip().splitlines()[-1]) from None
        found = json.loads(Path(directory, "found.json").read_text("utf-8"))
    check.add(f"all-reduce among {count}, each sends and receives", found["bytes"] / 1e9, "GB/s")
    tokens = check.scale.batches[0].examples * check.scale.batches[0].length
    check.add(f"training, {check.scale.batches[0]}, one of them", tokens / found["alone"], "tokens/s")
    together = count * tokens / found["together"]
    check.add(f"training, {check.scale.batches[0]} for each, all {count}", together, "tokens/s")
    share = 100 * found["alone"] / found["together"]
    what = f"all {count}, of {count} times the speed of one"
    check.add(what, share, "%", at_least=100 * SHARE_OF_ALL, of_card=True)


def _add_copies(check: Check, count: int) -> None:
    """The speed of copies from the first card to each other one."""
    size = EXCHANGED["cuda"]
    source = torch.empty(size, dtype=torch.uint8, device="cuda:0")
    for other in range(1, count):
        target = torch.empty_like(source, device=f"cuda:{other}")
        start = 0.0
        for _ in range(2):  # the first time sets things up
            wait_for(target.device)
            start = time.perf_counter()
            target.copy_(source)
            wait_for(source.device)
            wait_for(target.device)
        seconds = time.perf_counter() - start
        is_direct = torch.cuda.can_device_access_peer(0, other)
        note = "directly" if is_direct else "by way of the host's memory"
        check.add(f"copying from card 0 to card {other}", size / seconds / 1e9, "GB/s", note=note)


def measure_rank(rank: int, count: int, kind: str, scale: Scale, directory: str) -> None:
    """One of `count` processes; the first writes what it found to found.json in the directory."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{Path(directory, 'meeting').absolute()}",
        rank=rank,
        world_size=count,
        timeout=PATIENCE,
    )
    tensor = torch.zeros(EXCHANGED[kind] // 4, device=device)
    seconds = median_seconds(lambda: dist.all_reduce(tensor), device, REPEATED)
    # Each sends, and receives, what the others lack: twice a share of the tensor for each of the others.
    sent = 2 * (count - 1) / count * EXCHANGED[kind]
    model = bloom_of(scale.training, BloomForCausalLM, torch.bfloat16, device).train()
    alone = _seconds_of_step(model, scale.batches[0], scale.steps, exchanges=False) if rank == 0 else 0.0
    dist.barrier()
    together = _seconds_of_step(model, scale.batches[0], scale.steps, exchanges=True)
    if rank == 0:
        found = {"bytes": sent / seconds, "alone": alone, "together": together}
        Path(directory, "found.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def _seconds_of_step(model: BloomForCausalLM, batch: Batch, steps: int, exchanges: bool) -> float:
    """The seconds of a forward and a backward pass, and of the exchange of all gradients if there is one."""
    rows = random_rows([batch.length] * batch.examples, model.config.vocab_size)
    tensors = on_device(collate(rows), model.device)

    def step() -> None:
        model.zero_grad()
        model(**tensors).loss.backward()
        for weight in model.parameters() if exchanges else ():
            dist.all_reduce(weight.grad)

    return median_seconds(step, model.device, steps)
