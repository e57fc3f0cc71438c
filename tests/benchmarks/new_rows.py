"""How the embedding row that `<|End|>` starts from decides whether answers end: on a real base model.

    python -m tests.benchmarks.new_rows --input-model checkpoints/smollm2-135m --data-path FILE

`tests.benchmarks.smollm2` makes such a base. An adapter is trained twice by `training.trainer`: "eos" on the
base as it is, so that `<|End|>` starts as the base's end-of-sequence row, and "mean" on the same base with a
tokenizer and a configuration that name no such token, so that it starts as the mean of all rows. Printed for
each are the losses of `<|End|>` and of all supervised tokens in held-out rows, before and after the training,
and the share of greedy answers to those rows that ended by `<|End|>`. A base that was taught to answer before
is also asked by its own chat template: greedy answers of a small model may go on for ever, and that share
says how many of its own do.
"""

import json
import shutil
import tempfile
from itertools import islice, product
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import click
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from inference import batch
from inference.generation import load
from training import trainer
from training.card.timing import the_device
from training.common.errors import run_command
from training.common.files import write_atomic
from training.consts import NOT_SUPERVISED
from training.data.reader import read_rows
from training.model.load import load_model
from training.text.conversation import from_row
from training.text.encoding import encode
from training.text.tokenizer import load_tokenizer_and_new_tokens

STARTS = ("mean", "eos")


class Losses(NamedTuple):
    """Losses in nats: the mean over all supervised tokens, and over the last `<|End|>` of each row."""

    all: float
    end: float


# What names the end-of-sequence token of a saved model.
NAMING_EOS = {
    "tokenizer_config.json": "eos_token",
    "special_tokens_map.json": "eos_token",
    "config.json": "eos_token_id",
    "generation_config.json": "eos_token_id",
}


def base_without_eos(base: str, directory: Path) -> str:
    """A copy of a base model that names no end-of-sequence token; its other files are links."""
    directory.mkdir()
    for file in Path(base).iterdir():
        if file.name not in NAMING_EOS:
            (directory / file.name).symlink_to(file.resolve())
            continue
        content = json.loads(file.read_text("utf-8"))
        content[NAMING_EOS[file.name]] = None
        write_atomic(directory / file.name, json.dumps(content))
    return str(directory)


@torch.no_grad()
def answer_losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: list[dict]) -> Losses:
    """The losses of the reference answers of `rows`."""
    per_row = []
    for row in rows:
        example = encode(from_row(row), tokenizer)
        labels = torch.tensor(example["labels"][1:])
        logits = model(input_ids=torch.tensor([example["input_ids"]], device=model.device)).logits[0, :-1]
        loss = cross_entropy(logits.cpu(), labels, reduction="none")
        per_row.append(loss[labels != NOT_SUPERVISED])
    return Losses(torch.cat(per_row).mean().item(), torch.stack([loss[-1] for loss in per_row]).mean().item())


def losses_before_training(base: str, rows: list[dict]) -> Losses:
    """Those of the embedding rows that a run on `base` starts from."""
    tokenizer, new_tokens = load_tokenizer_and_new_tokens(base)
    device_map = {"": str(the_device())}
    model = load_model(base, tokenizer, dtype=torch.float32, new_tokens=new_tokens, device_map=device_map)
    return answer_losses(model.eval(), tokenizer, rows)


def ended_share(run_dir: Path, held_out: Path, max_new_tokens: int) -> float:
    """The share of greedy answers to the rows of a file that ended, rather than being cut off."""
    answers = run_dir / "answers.jsonl"
    options = ["--temperature", "0", "--max-new-tokens", str(max_new_tokens)]
    files = ["--model", str(run_dir), "--input", str(held_out), "--output", str(answers)]
    batch.main.main([*files, *options], standalone_mode=False)
    return mean(row[batch.ENDED] for _, row in read_rows(str(answers)))


@torch.no_grad()
def ended_share_of_base(base: str, rows: list[dict], max_new_tokens: int) -> float | None:
    """The same of the base's own answers, by the library and its own template; None where it has none."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    if tokenizer.chat_template is None:
        return None
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(the_device()).eval()
    ended = []
    for start in range(0, len(rows), 8):
        part = rows[start : start + 8]
        asked = ["\n".join(filter(None, (row["instruction"], row.get("input")))) for row in part]
        inputs = tokenizer.apply_chat_template(
            [[{"role": "user", "content": text}] for text in asked],
            add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True,
        ).to(model.device)  # fmt: skip
        made = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        answers = made[:, inputs["input_ids"].shape[1] :]
        ended += (answers == tokenizer.eos_token_id).any(dim=1).tolist()
    return mean(ended)


@click.command(context_settings={"show_default": True})
@click.option("--input-model", required=True, help="A base model's directory, without control tokens.")
@click.option(
    "--data-path", required=True, help="Rows to train on and to hold out; the first ones are taken."
)
@click.option("--rows", type=click.IntRange(min=1), default=160, help="Rows to train on.")
@click.option("--held-out", type=click.IntRange(min=1), default=32, help="Rows to hold out.")
@click.option("--steps", type=click.IntRange(min=1), default=40, help="Optimizer steps.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, help="Rows a step.")
@click.option("--max-length", type=click.IntRange(min=1), default=512, help="Tokens of the longest row.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, help="Tokens of an answer.")
@click.option("--lora-rank", type=click.IntRange(min=1), default=16, help="Rank of the adapter.")
@click.option("--warmup-steps", default="0.1", help="As for the trainer.")
@click.option(
    "--lr", type=float, multiple=True, default=[1e-4, 3e-4], help="A learning rate; several are compared."
)
@click.option("--start", type=click.Choice(STARTS), multiple=True, default=STARTS, help="What to compare.")
def main(
    input_model: str,
    data_path: str,
    rows: int,
    held_out: int,
    steps: int,
    batch_size: int,
    max_length: int,
    max_new_tokens: int,
    lora_rank: int,
    warmup_steps: str,
    lr: tuple[float, ...],
    start: tuple[str, ...],
) -> None:
    """Print a table with a line for each start and learning rate."""
    lines = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        taken = [row for _, row in islice(read_rows(data_path), rows + held_out)]
        training, others = directory / "training.jsonl", directory / "held_out.jsonl"
        for file, part in ((training, taken[:rows]), (others, taken[rows:])):
            file.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
        bases = {"eos": input_model, "mean": base_without_eos(input_model, directory / "base")}
        for each, rate in product(start, lr):
            before = losses_before_training(bases[each], taken[rows:])
            options = (
                f"--test-size 0 --max-steps {steps} --lora-rank {lora_rank} --lr {rate} "
                f"--warmup-steps {warmup_steps} --max-length {max_length} "
                f"--per-device-train-batch-size {batch_size} --no-gradient-checkpointing "
                f"--logging-steps {max(1, steps // 4)} --no-bf16 --run-name run"
            )
            paths = {"data-path": training, "input-model": bases[each], "local-output-dir": directory}
            paths["cache-dir"] = directory / "cache"
            named = [f"--{option}={path}" for option, path in paths.items()]
            trainer.main.main([*named, *options.split()], standalone_mode=False)
            run_dir = directory / "run"
            after = answer_losses(*load(str(run_dir), device=str(the_device())), taken[rows:])
            ended = ended_share(run_dir, others, max_new_tokens)
            shutil.rmtree(run_dir)
            of_end = f"{before.end:9.2f}{after.end:8.2f}"
            lines.append(f"{each:6}{rate:8g}{of_end}{before.all:14.3f}{after.all:8.3f}{ended:9.0%}")
            click.echo(lines[-1])
    click.echo(f"{'':14}{'<|End|>':>17}{'held-out loss':>22}{'':>9}")
    click.echo(f"{'start':6}{'--lr':>8}{'before':>9}{'after':>8}{'before':>14}{'after':>8}{'ended':>9}")
    click.echo("\n".join(lines))
    own = ended_share_of_base(input_model, taken[rows:], max_new_tokens)
    if own is not None:
        click.echo(f"{'the base itself, by its own template':54}{own:9.0%}")


if __name__ == "__main__":
    run_command(main)
