"""Check our options against machine, model and DeepSpeed's configuration, and make transformers'
TrainingArguments of them."""

from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from training.common.console import say
from training.common.errors import UserError
from training.common.hub import check_base_model
from training.common.options import Options
from training.common.ranks import world_size
from training.consts import CONTEXT
from training.data.pipes import is_pipe
from training.model.context import context_limit
from training.model.load import read_config
from training.model.packing_trial import why_padded
from training.run.cards import check_bf16, check_cards
from training.run.deepspeed_config import read_deepspeed_config
from training.run.deepspeed_values import (
    adam_settings,
    check_gradient_sums,
    check_learning_rate,
    take_values_of_file,
)
from training.run.launch import check_build_tools
from training.run.reporters import check_reporters


def check_options(options: Options) -> tuple[Options, dict[str, Any] | None]:
    """The options, and DeepSpeed's configuration, if any, whose values count where options are not given.

    Raises UserError for options that configuration, machine or model forbid.
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(
            "accelerate is set to start DeepSpeed by itself (distributed_type DEEPSPEED, or "
            "ACCELERATE_USE_DEEPSPEED), and its settings for that are not read here; take distributed_type "
            "MULTI_GPU, or unset the variable, and give DeepSpeed's file by --deepspeed"
        )
    paths = [*(source.path for source in options.data_path), *options.eval_data_path]
    pipe = next(filter(is_pipe, paths), None)
    if options.plan and pipe and world_size() > 1:
        # The ranks of a plan do not wait for one another, and the first removes its copy of the pipe.
        raise UserError(
            f"{pipe}: a pipe, which --plan reads in one process only; write its rows to a file first"
        )
    check_cards()
    deepspeed_config = read_deepspeed_config(options.deepspeed) if options.deepspeed else None
    options = take_values_of_file(options, deepspeed_config or {})
    check_gradient_sums(deepspeed_config or {}, options.bf16)
    if deepspeed_config and not options.plan:
        check_build_tools(deepspeed_config)
    check_reporters(options.report_to)
    check_base_model(options.input_model)
    if options.load_in_4bit and (deepspeed_config or {}).get("zero_optimization", {}).get("stage") == 3:
        raise UserError("--load-in-4bit: ZeRO-3 cannot divide weights of 4 bits; take a ZeRO-2 configuration")
    if options.bf16:
        check_bf16()
        check_learning_rate(deepspeed_config or {}, options.lr)
    if options.tokens_per_batch:
        config = read_config(options.input_model)
        longest = options.max_length or min(CONTEXT, context_limit(config) or CONTEXT)
        reason = why_padded(config, longest)
        if reason:
            raise UserError(
                f"--tokens-per-batch: for packed batches, and those of {options.input_model} are padded "
                f"({reason})"
            )
    return options, deepspeed_config


class OneCardArguments(TrainingArguments):
    """TrainingArguments by which one process uses one card, even where it sees several.

    transformers would split each batch over all cards that a process sees, with DataParallel.
    """

    @property
    def n_gpu(self) -> int:
        found = super().n_gpu
        return min(found, 1)


def training_arguments(
    options: Options, deepspeed_config: dict[str, Any] | None, *, evaluates: bool
) -> TrainingArguments:
    """transformers' arguments for our options; making them starts the process group if there is none.

    evaluates: whether there are held-out examples. Raises UserError where the DeepSpeed configuration has
    another value than the options.
    """
    args = OneCardArguments(
        output_dir=str(options.local_output_dir),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        learning_rate=options.lr,
        lr_scheduler_type=options.lr_scheduler,
        warmup_steps=options.warmup_steps,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        **adam_settings(deepspeed_config or {}),
        per_device_train_batch_size=options.per_device_train_batch_size or 1,
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
        eval_strategy="steps" if evaluates else "no",
        eval_steps=options.eval_steps,
        save_steps=options.save_steps,
        save_only_model=options.save_only_model,
        ddp_timeout=options.ddp_timeout,
        remove_unused_columns=False,
        report_to=[name for name in options.report_to if name != "none"],
        disable_tqdm=True,
    )
    if deepspeed_config and args.hf_deepspeed_config.mismatches:
        differences = ", ".join(args.hf_deepspeed_config.mismatches)
        raise UserError(
            f'{options.deepspeed}: contradicts the command line ({differences}); write "auto" there'
        )
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if args.world_size == 1 and cards > 1:
        say(f"one process uses one of the {cards} cards; for all: deepspeed --module training.trainer")
    return args
