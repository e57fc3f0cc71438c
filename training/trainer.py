"""Fine-tune all weights of a base model on a file of instructions.

    deepspeed --num_gpus=8 --module training.trainer \\
        --data-path data/yayi_train_example.json --input-model bigscience/bloomz-7b1-mt \\
        --deepspeed config/deepspeed_zero2_bf16.json --local-output-dir checkpoints

One process, with or without a card: `python -m training.trainer` and the same options.
"""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch
from accelerate.utils import broadcast_object_list
from click_option_group import optgroup
from torch.utils.data import ConcatDataset, Dataset, Subset
from transformers import PreTrainedTokenizerFast, TrainingArguments

from training.batching import collate, collate_padded
from training.cache import default_cache_dir
from training.check import ON_BAD_ROW, refuse_unusable, short_form
from training.checkpointing import SaveTokenizer, check_run_dir, export_model
from training.dataset import Example, load_encoded
from training.errors import UserError, run_command
from training.machine import check_bf16, read_deepspeed_config, share_cores, start_deepspeed
from training.model import load_model
from training.modeling_bloom import BloomForCausalLM
from training.reporting import say
from training.sft_trainer import SCHEDULES, SFTTrainer
from training.split import Source, parse_source, parse_test_size, split
from training.tokenizer import check_model_path, load_tokenizer


class Parsed(click.ParamType):
    """What `parse` makes of the text of an option; its ValueError is the user's mistake."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return self.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, context)


COUNT = click.IntRange(min=0)
POSITIVE = click.IntRange(min=1)
POSITIVE_REAL = click.FloatRange(min=0, min_open=True)


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@optgroup.group("Data")
@optgroup.option(
    "--data-path",
    required=True,
    multiple=True,
    type=Parsed("FILE[:WEIGHT]", parse_source),
    help="Rows to learn: JSON Lines, a JSON array, or a data set on the hub. May be given several times; a "
    "weight says how often each row is seen in an epoch, as in FILE:0.5.",
)
@optgroup.option(
    "--on-bad-row",
    type=ON_BAD_ROW,
    default="error",
    help="Whether a row that cannot be used is an error, or dropped and counted.",
)
@optgroup.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    default=default_cache_dir,
    show_default="~/.cache/yayi",
    help="Where encoded rows are kept for the next start.",
)
@optgroup.option(
    "--max-length", type=POSITIVE, default=2048, help="Longest row, in tokens; longer ones are cut at a turn."
)
@optgroup.option(
    "--test-size",
    type=Parsed("COUNT|RATIO", parse_test_size),
    default="0.05",
    help="Rows held out for evaluation: a count or a ratio.",
)
@optgroup.group("Model")
@optgroup.option(
    "--input-model", required=True, help="Model to start from: a directory, or a name on the hub."
)
@optgroup.option(
    "--local-output-dir", required=True, type=click.Path(path_type=Path), help="Where run directories go."
)
@optgroup.option("--run-name", help="Name of the run directory.  [default: INPUT-MODEL-sft-TIME]")
@optgroup.group("Optimisation")
@optgroup.option("--epochs", type=POSITIVE_REAL, default=2, help="Passes over the data.")
@optgroup.option(
    "--max-steps", type=POSITIVE, help="Stop after so many optimizer steps, whatever --epochs says."
)
@optgroup.option("--lr", type=POSITIVE_REAL, default=1e-5, help="Highest learning rate.")
@optgroup.option(
    "--lr-scheduler", type=click.Choice(SCHEDULES), default="constant", help="What follows the warm-up."
)
@optgroup.option("--warmup-steps", type=COUNT, default=100, help="Optimizer steps over which the rate rises.")
@optgroup.option(
    "--per-device-train-batch-size", type=POSITIVE, default=8, help="Rows a card and micro-batch."
)
@optgroup.option("--per-device-eval-batch-size", type=POSITIVE, default=8, help="The same in evaluation.")
@optgroup.option(
    "--gradient-accumulation-steps", type=POSITIVE, default=1, help="Micro-batches an optimizer step."
)
@optgroup.option(
    "--seed", type=COUNT, default=515, help="Of the split, the order of rows, and new tokens' rows."
)
@optgroup.group("Memory and machine")
@optgroup.option("--deepspeed", help="DeepSpeed's JSON configuration; without it, one plain process a card.")
@optgroup.option("--bf16/--no-bf16", default=True, help="Compute in bfloat16, or in float32.")
@optgroup.option(
    "--gradient-checkpointing/--no-gradient-checkpointing",
    default=True,
    help="Compute activations again in the backward pass instead of keeping them.",
)
@optgroup.option("--local_rank", type=int, help="Set by DeepSpeed's launcher; not for people.")
@optgroup.group("Progress")
@optgroup.option("--logging-steps", type=POSITIVE, default=10, help="Steps between log lines.")
@optgroup.option("--eval-steps", type=POSITIVE, default=100, help="Steps between evaluations.")
@optgroup.option("--save-steps", type=POSITIVE, default=100, help="Steps between checkpoints.")
@optgroup.option("--save-total-limit", type=POSITIVE, default=3, help="Checkpoints to keep; older ones go.")
def main(**options: Any) -> None:
    """Fine-tune all weights of a base model on a file of instructions.

    Run it on all cards of a box by `deepspeed --module training.trainer`, or as one process by
    `python -m training.trainer`.
    """
    train(SimpleNamespace(**options))


def train(options: SimpleNamespace) -> Path:
    """The whole run, from the options to the saved model. Returns the run directory."""
    # What can be refused is refused before anything long starts.
    deepspeed_config = read_deepspeed_config(options.deepspeed) if options.deepspeed else None
    run_name = options.run_name or default_run_name(options.input_model)
    if Path(run_name).name != run_name:
        raise UserError(f"--run-name {run_name}: not a plain name; --local-output-dir says where")
    check_run_dir(options.local_output_dir / run_name)
    check_model_path(options.input_model)
    if options.bf16:
        check_bf16()

    tokenizer = load_tokenizer(options.input_model)
    train_rows, test_rows = build_datasets(options, tokenizer)

    share_cores()
    if deepspeed_config:
        start_deepspeed()
    args = training_arguments(options, deepspeed_config, evaluate=len(test_rows) > 0)
    if deepspeed_config and args.hf_deepspeed_config.mismatches:
        differences = ", ".join(args.hf_deepspeed_config.mismatches)
        raise UserError(
            f'{options.deepspeed}: contradicts the command line ({differences}); write "auto" there'
        )
    run_dir = options.local_output_dir / broadcast_object_list([run_name])[0]
    args.output_dir = str(run_dir)

    # DeepSpeed's optimizer keeps float32 weights beside the model's bf16 ones. Without it the model's own are
    # float32, and bf16 is autocast's.
    dtype = torch.bfloat16 if options.bf16 and deepspeed_config else torch.float32
    model = load_model(options.input_model, tokenizer, dtype=dtype, seed=options.seed)
    is_bloom = isinstance(model, BloomForCausalLM)
    say(
        "Bloom: no padding, fused attention, logits only where they are learnt"
        if is_bloom
        else f"{type(model).__name__}: transformers' own, with padded batches"
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        data_collator=collate if is_bloom else collate_padded,
        train_dataset=train_rows,
        eval_dataset=test_rows if len(test_rows) else None,
        callbacks=[SaveTokenizer(tokenizer)],
    )
    say(f"training on {len(train_rows)} rows with {args.world_size} process(es), into {run_dir}")
    trainer.train()

    export_model(trainer, tokenizer, run_dir)
    say(f"saved {run_dir}; talk to it: python -m inference.chat --model {run_dir}")
    trainer.accelerator.end_training()
    return run_dir


def default_run_name(input_model: str) -> str:
    """`<input model's name>-sft-<time>`."""
    return f"{Path(input_model).absolute().name}-sft-{time.strftime('%Y%m%d-%H%M%S')}"


def build_datasets(
    options: SimpleNamespace, tokenizer: PreTrainedTokenizerFast
) -> tuple[Dataset[Example], Dataset[Example]]:
    """(training, held-out) examples; says what is learnt, cut, dropped, and held out."""
    sources: tuple[Source, ...] = options.data_path
    files = [
        load_encoded(source.path, tokenizer, options.max_length, options.cache_dir) for source in sources
    ]
    paths = [source.path for source in sources]
    refuse_unusable(paths, [file.summary for file in files], options.on_bad_row)
    for path, file in zip(paths, files, strict=True):
        for line in short_form(path, file.summary):
            say(line)

    rows = ConcatDataset(files)
    weights = [source.weight for source in sources]
    chosen = split([file.rows["prompt"] for file in files], weights, options.test_size, options.seed)
    for source, file, taken in zip(sources, files, chosen.taken, strict=True):
        if source.weight != 1:
            say(f"{source.path}: weight {source.weight:g}: {taken:,} rows, of {len(file):,}")
    say(f"{len(chosen.train):,} rows to train on, {len(chosen.held_out):,} held out")
    if chosen.wanted != options.test_size and isinstance(options.test_size, int):
        say(
            f"WARNING: --test-size {options.test_size} would leave none of the rows to train on; a tenth of "
            f"them is held out instead, {chosen.wanted:,} rows"
        )
    if chosen.moved:
        say(f"{chosen.moved:,} rows changed sides, so that all rows with one prompt are on the same side")
    if len(chosen.held_out) < chosen.wanted:
        say(f"WARNING: not {chosen.wanted:,}: the rest share a prompt with more rows than there was room for")
    return Subset(rows, chosen.train), Subset(rows, chosen.held_out)


def training_arguments(
    options: SimpleNamespace, deepspeed_config: dict[str, Any] | None, evaluate: bool
) -> TrainingArguments:
    """transformers' arguments for our options; making them starts the process group if there is none."""
    args = TrainingArguments(
        output_dir=str(options.local_output_dir),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        learning_rate=options.lr,
        lr_scheduler_type=options.lr_scheduler,
        warmup_steps=options.warmup_steps,
        per_device_train_batch_size=options.per_device_train_batch_size,
        per_device_eval_batch_size=options.per_device_eval_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        activation_checkpointing=options.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if options.gradient_checkpointing else None,
        bf16=options.bf16,
        use_cpu=not torch.accelerator.is_available(),
        deepspeed=deepspeed_config,
        seed=options.seed,
        logging_steps=options.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=options.eval_steps,
        save_steps=options.save_steps,
        save_total_limit=options.save_total_limit,
        remove_unused_columns=False,
        report_to=["tensorboard"],
        disable_tqdm=True,
    )
    if args.n_gpu > 1:
        say(f"one process uses one of the {args.n_gpu} cards; for all: deepspeed --module training.trainer")
        args._n_gpu = 1  # transformers would split each batch over the cards with DataParallel
    return args


if __name__ == "__main__":
    run_command(main)
