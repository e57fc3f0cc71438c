"""Fine-tune all weights of a base model, or an adapter, on a file of instructions.

    deepspeed --num_gpus=8 --module training.trainer \\
        --data-path data/yayi_train_example.json --input-model bigscience/bloomz-7b1-mt \\
        --deepspeed config/deepspeed_zero2_bf16.json --local-output-dir checkpoints

One process, with or without a card: `python -m training.trainer` and the same options.
"""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch
from accelerate.utils import broadcast_object_list
from click.core import ParameterSource
from click_option_group import optgroup
from transformers import TrainingArguments

from training.common.console import quiet_libraries, say
from training.common.errors import UserError, run_command
from training.common.hub import check_base_model, is_adapter
from training.consts import CONTEXT
from training.cost.ways import plan, this_machine
from training.data.audit import ON_BAD_ROW
from training.data.cache import default_cache_dir
from training.data.collate import collate, collate_padded
from training.data.examples import build_datasets
from training.data.split import parse_source, parse_test_size
from training.model.bloom import BloomForCausalLM
from training.model.load import is_bloom, load_model
from training.model.lora import add_adapter, quantized_loading
from training.run.checkpoints import check_room, export_model, step_of
from training.run.launch import (
    check_bf16,
    check_learning_rate,
    read_deepspeed_config,
    share_cores,
    start_deepspeed,
)
from training.run.report import opening, write_report
from training.run.resume import (
    as_universal,
    check_new,
    check_same_run,
    describe,
    hold,
    is_begun,
    keep_global_batch,
    newest_checkpoint,
    ranks_of,
    read_record,
    write_record,
)
from training.run.sft_trainer import SCHEDULES, SFTTrainer
from training.run.stopping import StopRequest, command_line, command_to_continue
from training.text.tokenizer import load_tokenizer, new_tokens


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

# Of ranks, as the launcher says.
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))


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
    type=click.Choice(ON_BAD_ROW),
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
    "--max-length",
    type=POSITIVE,
    default=CONTEXT,
    help="Longest row, in tokens; longer ones are cut at a turn.",
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
@optgroup.option("--resume", is_flag=True, help="Continue the run of --run-name from its newest checkpoint.")
@optgroup.option("--resume-anyway", is_flag=True, help="The same on other data, model, batch size or seed.")
@optgroup.group("Adapter, instead of all weights")
@optgroup.option("--lora-rank", type=POSITIVE, help="Train a LoRA adapter of this rank on frozen weights.")
@optgroup.option("--lora-alpha", type=POSITIVE, help="Its scale, times the rank.  [default: twice the rank]")
@optgroup.option(
    "--lora-dropout", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="Before the adapter."
)
@optgroup.option(
    "--lora-target",
    default="auto",
    help="Names of the layers that get it, with commas; auto is all linear layers but the head.",
)
@optgroup.option("--load-in-4bit", is_flag=True, help="Keep the frozen weights of the layers in 4 bits.")
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
@optgroup.option(
    "--tokens-per-batch",
    type=POSITIVE,
    help="Instead of that: whole rows, as many as make at most so many tokens.",
)
@optgroup.option("--per-device-eval-batch-size", type=POSITIVE, default=8, help="Rows in evaluation.")
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
@optgroup.option(
    "--ddp-timeout",
    type=POSITIVE,
    default=1800,
    help="Seconds that a rank waits for another before it fails.",
)
@optgroup.option("--plan", is_flag=True, help="Say what the run would take here, and stop.")
@optgroup.option("--local_rank", type=int, help="Set by DeepSpeed's launcher; not for people.")
@optgroup.group("Progress")
@optgroup.option("--logging-steps", type=POSITIVE, default=10, help="Steps between log lines.")
@optgroup.option("--eval-steps", type=POSITIVE, default=100, help="Steps between evaluations.")
@optgroup.option("--save-steps", type=POSITIVE, default=100, help="Steps between checkpoints.")
@optgroup.option("--save-total-limit", type=POSITIVE, default=3, help="Checkpoints to keep; older ones go.")
@optgroup.option(
    "--save-only-model", is_flag=True, help="Checkpoints without the optimizer: smaller, not for --resume."
)
def main(**options: Any) -> None:
    """Fine-tune all weights of a base model on a file of instructions.

    Run it on all cards of a box by `deepspeed --module training.trainer`, or as one process by
    `python -m training.trainer`.
    """
    rows_are_given = click.get_current_context().get_parameter_source("per_device_train_batch_size")
    if options["tokens_per_batch"] and rows_are_given is not ParameterSource.DEFAULT:
        raise UserError(
            "--tokens-per-batch and --per-device-train-batch-size contradict each other; give one"
        )
    quiet_libraries()
    options["resume"] |= options["resume_anyway"]
    train(SimpleNamespace(**options))


def train(options: SimpleNamespace) -> Path:
    """The whole run, from the options to the saved model. Returns the run directory."""
    # What can be refused is refused before anything long starts.
    deepspeed_config = check_options(options)
    run_name = options.run_name or default_run_name(options.input_model)
    run_dir = options.local_output_dir / run_name
    record = checkpoint = None
    ranks_differ = False
    if options.resume and is_begun(run_dir):
        record, checkpoint = read_record(run_dir), newest_checkpoint(run_dir)
        keep_global_batch(options, record, WORLD_SIZE)
        ranks_differ = checkpoint is not None and ranks_of(checkpoint) != WORLD_SIZE
    else:
        check_new(run_dir)

    tokenizer = load_tokenizer(options.input_model)
    train_rows, test_rows = build_datasets(options, tokenizer)
    longest = int(train_rows.lengths.max(initial=0))
    if options.tokens_per_batch and longest > options.tokens_per_batch:
        raise UserError(
            f"--tokens-per-batch {options.tokens_per_batch}: a row has {longest} tokens; allow as many, or "
            "cut rows by --max-length"
        )
    if options.plan:
        for line in plan(options, tokenizer, train_rows, this_machine(WORLD_SIZE)):
            say(line)
        return run_dir
    this_run = describe(options, deepspeed_config, train_rows, test_rows, WORLD_SIZE)
    if record:
        check_same_run(run_dir, this_run, record, options.resume_anyway)

    share_cores()
    if deepspeed_config:
        start_deepspeed(timedelta(seconds=options.ddp_timeout))
        if ranks_differ:
            deepspeed_config["checkpoint"] = {"load_universal": True}
    args = training_arguments(options, deepspeed_config, evaluate=len(test_rows) > 0)
    if deepspeed_config and args.hf_deepspeed_config.mismatches:
        differences = ", ".join(args.hf_deepspeed_config.mismatches)
        raise UserError(
            f'{options.deepspeed}: contradicts the command line ({differences}); write "auto" there'
        )
    run_dir = options.local_output_dir / broadcast_object_list([run_name])[0]
    args.output_dir = str(run_dir)

    with hold(run_dir), StopRequest() as stop_request:
        # DeepSpeed's optimizer keeps float32 weights beside the model's bf16 ones. Without it what is trained
        # is float32, and bf16 is autocast's.
        in_bf16 = options.bf16 and (deepspeed_config or options.lora_rank)
        loading = quantized_loading(args.device) if options.load_in_4bit else {}
        model = load_model(
            options.input_model,
            tokenizer,
            dtype=torch.bfloat16 if in_bf16 else torch.float32,
            seed=options.seed,
            **loading,
        )
        is_ours = isinstance(model, BloomForCausalLM)
        if is_ours:  # has no limit but this; servers and our chat go by it
            known = getattr(model.config, "seq_length", CONTEXT)
            model.config.seq_length = max(known, options.max_length)
        say(
            "Bloom: no padding, fused attention, logits only where they are learnt"
            if is_ours
            else f"{type(model).__name__}: transformers' own, with padded batches"
        )
        if options.lora_rank:
            torch.manual_seed(options.seed)  # of the adapter's first weights
            model = add_adapter(
                model,
                new_tokens(options.input_model, tokenizer),
                rank=options.lora_rank,
                alpha=options.lora_alpha or 2 * options.lora_rank,
                dropout=options.lora_dropout,
                target=options.lora_target,
            )
        trainer = SFTTrainer(
            model=model,
            args=args,
            data_collator=collate if is_ours else collate_padded,
            train_dataset=train_rows,
            eval_dataset=test_rows if len(test_rows) else None,
            tokenizer=tokenizer,
            tokens_per_batch=options.tokens_per_batch,
            stop_request=stop_request,
        )
        for line in opening(trainer, check_room(trainer, run_dir)):
            say(line)
        is_saved = (run_dir / "config.json").exists() or is_adapter(str(run_dir))
        if checkpoint and step_of(checkpoint) >= trainer.total_steps and is_saved:
            say(f"{run_dir}: finished already; more --epochs or --max-steps would continue it")
            return run_dir
        if args.process_index == 0 and (record is None or options.resume_anyway):
            write_record(run_dir, this_run)
        if ranks_differ and deepspeed_config:
            with as_universal(checkpoint, trainer) as converted:
                trainer.train(resume_from_checkpoint=str(converted))
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

        if trainer.stopped_by:
            say(f"stopped at step {trainer.state.global_step} by {trainer.stopped_by}; to continue:")
            say(command_to_continue(run_dir.name))
        else:
            export_model(trainer, tokenizer, run_dir)
            if trainer.is_world_process_zero():
                found = {file.data_path: file.summary for file in train_rows.dataset.datasets}
                write_report(trainer, run_dir, command_line(), this_run, found)
            say(f"saved {run_dir}; talk to it: python -m inference.chat --model {run_dir}")
        trainer.accelerator.end_training()
    return run_dir


def check_options(options: SimpleNamespace) -> dict[str, Any] | None:
    """DeepSpeed's configuration. Raises UserError for options that cannot go together, or not here."""
    deepspeed_config = read_deepspeed_config(options.deepspeed) if options.deepspeed else None
    if options.run_name and Path(options.run_name).name != options.run_name:
        raise UserError(f"--run-name {options.run_name}: not a plain name; --local-output-dir says where")
    if options.resume and not options.run_name:
        raise UserError("--resume: which run? Give its --run-name")
    check_base_model(options.input_model)
    if options.load_in_4bit and not options.lora_rank:
        raise UserError("--load-in-4bit: weights in 4 bits cannot be trained; give a --lora-rank as well")
    if options.load_in_4bit and (deepspeed_config or {}).get("zero_optimization", {}).get("stage") == 3:
        raise UserError("--load-in-4bit: ZeRO-3 cannot divide weights of 4 bits; take a ZeRO-2 configuration")
    if options.bf16:
        check_bf16()
        check_learning_rate(deepspeed_config or {}, options.lr)
    if options.tokens_per_batch and not is_bloom(options.input_model):
        raise UserError("--tokens-per-batch: for a Bloom only; other models' batches are padded")
    return deepspeed_config


def default_run_name(input_model: str) -> str:
    """`<input model's name>-sft-<time>`."""
    return f"{Path(input_model).absolute().name}-sft-{time.strftime('%Y%m%d-%H%M%S')}"


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
        save_only_model=options.save_only_model,
        ddp_timeout=options.ddp_timeout,
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
