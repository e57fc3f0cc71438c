"""Fine-tune all weights of a base model on a file of instructions.

    deepspeed --num_gpus=8 --module training.trainer \\
        --data-path data/yayi_train_example.json --input-model bigscience/bloomz-7b1-mt \\
        --deepspeed config/deepspeed_zero2_bf16.json --local-output-dir checkpoints

One process, with or without a card: `python -m training.trainer` and the same options.
"""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch
from accelerate.utils import broadcast_object_list
from click_option_group import optgroup
from transformers import PreTrainedTokenizerFast, TrainingArguments

from training.batching import collate
from training.checkpointing import SaveTokenizer, check_run_dir, export_model
from training.consts import NOT_LEARNT
from training.dataset import Example, encode_rows, held_out_count, named, parse_test_size, split
from training.errors import UserError, run_command
from training.machine import check_bf16, read_deepspeed_config, share_cores, start_deepspeed
from training.model import load_model
from training.reporting import say
from training.sft_trainer import SCHEDULES, SFTTrainer
from training.tokenizer import check_model_path, load_tokenizer


class TestSize(click.ParamType):
    name = "COUNT|RATIO"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> int | float:
        try:
            return parse_test_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, context)


COUNT = click.IntRange(min=0)
POSITIVE = click.IntRange(min=1)
POSITIVE_REAL = click.FloatRange(min=0, min_open=True)


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@optgroup.group("Data")
@optgroup.option(
    "--data-path", required=True, help="Rows to learn: JSON Lines, a JSON array, or a data set on the hub."
)
@optgroup.option(
    "--max-length", type=POSITIVE, default=2048, help="Longest row, in tokens; longer ones are cut at a turn."
)
@optgroup.option(
    "--test-size", type=TestSize(), default="0.05", help="Rows held out for evaluation: a count or a ratio."
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
    args = training_arguments(options, deepspeed_config, evaluate=bool(test_rows))
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
    trainer = SFTTrainer(
        model=model,
        args=args,
        data_collator=collate,
        train_dataset=train_rows,
        eval_dataset=test_rows or None,
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
) -> tuple[list[Example], list[Example]]:
    """(training, held-out) examples; says what was cut, dropped, and held out."""
    rows = encode_rows(options.data_path, tokenizer, options.max_length)
    count = len(rows.examples)
    if rows.cut:
        say(f"cut after the last turn within --max-length: {len(rows.cut)} rows ({named(rows.cut)})")
    if rows.dropped:
        say(f"DROPPED, first turn beyond --max-length: {len(rows.dropped)} rows ({named(rows.dropped)})")
    held_out = held_out_count(count, options.test_size)
    if options.test_size >= count:
        say(
            f"WARNING: --test-size {options.test_size} leaves none of the {count} rows to train on; "
            f"holding out a tenth instead, {held_out} rows"
        )
    learnt = sum(int((example["labels"] != NOT_LEARNT).sum()) for example in rows.examples)
    total = sum(len(example["labels"]) for example in rows.examples)
    say(f"{options.data_path}: {count} rows of {total} tokens, {learnt} of them learnt; {held_out} held out")
    return split(rows.examples, held_out, options.seed)


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
