"""Fine-tune all weights of a base model, or an adapter, on a file of instructions.

    deepspeed --num_gpus=8 --module training.trainer \\
        --data-path data/yayi_train_example.json --input-model bigscience/bloomz-7b1-mt \\
        --deepspeed config/deepspeed_zero2_bf16_no_offload.json --local-output-dir checkpoints

For a single process, with or without a card, use `python -m training.trainer` and the same options.
"""

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

from training.common.command_line import OptionsCommand, names_not_given, options_of
from training.common.console import quiet_libraries, say
from training.common.errors import UserError, run_command
from training.common.files import write_failure_refused
from training.common.options import Options
from training.common.ranks import world_size
from training.cost.ways import plan, this_machine
from training.data.collate import collator
from training.data.evaluation_files import leakage_lines, load_evaluation_files
from training.data.examples import Examples, build_datasets
from training.model.context import longest_row, note_context
from training.model.load import load_model, read_config, takes_packed_batches
from training.model.lora import add_adapter, quantized_loading
from training.model.model_card import PICTURE
from training.model.packing_trial import why_padded
from training.run.arguments import check_options, training_arguments
from training.run.card_memory import (
    opening_advice,
    out_of_memory_refused,
    place_of_loading,
    planned_memory,
)
from training.run.cards import check_card
from training.run.checkpoints import check_disk_space, export_model
from training.run.continued import LoadedCheckpoint, universal_checkpoint
from training.run.curves import draw_curves
from training.run.deepspeed_values import offload_device
from training.run.launch import share_cores, start_deepspeed
from training.run.machine import describe_machine
from training.run.process_group import port_in_use_refused, settle_gloo_interface
from training.run.record import beginning, check_same_run, describe
from training.run.report import make_report, opening_lines, remove_report, write_report
from training.run.resume import RecordInEffect, Run, find_run, recorded_options
from training.run.sft_trainer import SFTTrainer
from training.run.stopping import STOPPED_STATUS
from training.run.training_section import write_card_of_run
from training.run.trial import LongestBatchTrial, is_wanted
from training.run.typed_command import command_to_continue
from training.text.saved_template import default_system
from training.text.tokenizer import NewTokens, load_tokenizer_and_new_tokens

if TYPE_CHECKING:
    from training.model.adapted import AdaptedModel


@click.command(cls=OptionsCommand, context_settings={"show_default": True, "max_content_width": 110})
@options_of(Options)
def main(**values: Any) -> None:
    """Fine-tune all weights of a base model, or an adapter, on a file of instructions.

    Run it on all cards of a box by `deepspeed --module training.trainer`, or as one process by
    `python -m training.trainer`.
    """
    quiet_libraries()
    train(Options(**values, default_names=names_not_given()))


def train(options: Options) -> None:
    """Do the whole run, from the options to the saved model."""
    with open_run(options) as run, out_of_memory_refused(run):
        data = prepare_data(run)
        if options.plan:
            for line in plan(
                run.options, data.tokenizer, data.new_tokens, data.training, this_machine(world_size())
            ):
                say(line)
            return
        trainer = prepare_model(run, data)
        if fit(run, data, trainer):
            finish(run, data, trainer)
        trainer.accelerator.end_training()
        if trainer.stopped_by:
            sys.exit(STOPPED_STATUS)


def open_run(options: Options) -> Run:
    """The run to begin or to continue. Raises UserError for wrong options, before any slow work starts."""
    options, deepspeed_config = check_options(recorded_options(options))
    return find_run(options, deepspeed_config)


class Data(NamedTuple):
    """What the run learns from, and what it is evaluated on."""

    tokenizer: PreTrainedTokenizerFast
    new_tokens: NewTokens  # control tokens that the input model did not have
    training: Examples
    held_out: Examples
    evaluation_files: dict[str, Examples]  # by name

    @property
    def evaluated(self) -> dict[str, Examples]:
        """All that the run is evaluated on, by name; that of the rows held out is ""."""
        return ({"": self.held_out} if len(self.held_out) else {}) | self.evaluation_files


def prepare_data(run: Run) -> Data:
    """The tokenizer and the encoded examples.

    Raises UserError where those of a continued run are not the ones that it began with.
    """
    options = run.options
    options.max_length = longest_row(
        options.input_model, options.max_length, is_given="max_length" not in options.default_names
    )
    begun = beginning(run.record, options)
    tokenizer, new_tokens = load_tokenizer_and_new_tokens(
        options.input_model, options.system, adds_pad=begun.adds_pad, tools=begun.has_tools
    )
    files = load_evaluation_files(options, tokenizer)
    training, held_out = build_datasets(options, tokenizer, begun.together)
    longest = int(training.lengths.max(initial=0))
    if options.tokens_per_batch and longest > options.tokens_per_batch:
        raise UserError(
            f"--tokens-per-batch {options.tokens_per_batch}: a row has {longest} tokens; allow as many, or "
            "cut rows by --max-length"
        )
    for line in leakage_lines(files, training):
        say(line)
    system = default_system(tokenizer)
    run.description = describe(
        options, run.deepspeed_config, training, held_out, world_size(), begun, files, system
    )
    if run.record:
        check_same_run(run.directory, run.description, run.record, options.resume_anyway)
    return Data(tokenizer, new_tokens, training, held_out, files)


def prepare_model(run: Run, data: Data) -> SFTTrainer:
    """The trainer, with the model that it is to fit. All ranks call this together."""
    with port_in_use_refused():
        args = join_ranks(run, data)
    if is_wanted(args.device):
        run.planned = planned_memory(run, data.tokenizer, data.new_tokens, data.training)
    model = load_trainable(run, data, args.device)
    trainer = SFTTrainer(
        model=model,
        args=args,
        data_collator=collator(takes_packed_batches(model)),
        train_dataset=data.training,
        eval_dataset=data.evaluated,
        tokenizer=data.tokenizer,
        tokens_per_batch=run.options.tokens_per_batch,
        stop_request=run.stop_request,
        save_total_limit=run.options.save_total_limit,
        warmup_shape=run.options.warmup_shape,
        planned=run.planned,
    )
    run.steps_taken = lambda: trainer.state.global_step
    return trainer


def join_ranks(run: Run, data: Data) -> TrainingArguments:
    """Start the process group, in which the ranks agree on the run directory, and take its lock."""
    options, deepspeed_config = run.options, run.deepspeed_config
    share_cores(offloads=offload_device(deepspeed_config or {}) != "none")
    settle_gloo_interface()
    check_card()
    if deepspeed_config:
        start_deepspeed(timedelta(seconds=options.ddp_timeout))
        if run.must_convert:
            deepspeed_config.setdefault("checkpoint", {})["load_universal"] = True
    args = training_arguments(options, deepspeed_config, evaluates=bool(data.evaluated))
    run.hold()
    args.output_dir = str(run.directory)
    return args


def load_trainable(run: Run, data: Data, device: torch.device) -> "PreTrainedModel | AdaptedModel":
    """The input model with an embedding row for every token, and with its adapter if the run has one."""
    options = run.options
    # DeepSpeed's optimizer keeps float32 weights beside the model's bf16 ones. Without it the trainable
    # weights are float32, and autocast computes in bf16.
    in_bf16 = options.bf16 and (run.deepspeed_config or options.lora_rank)
    reason = why_padded(read_config(options.input_model), options.max_length)
    model = load_model(
        options.input_model,
        data.tokenizer,
        dtype=torch.bfloat16 if in_bf16 else torch.float32,
        new_tokens=data.new_tokens,
        seed=options.seed,
        packed=not reason,
        **(quantized_loading(device) if options.load_in_4bit else place_of_loading(run, device)),
    )
    kind = type(model).__name__
    if reason:
        say(f"{kind}: padded batches, all logits, by transformers' own implementation ({reason})")
    else:
        say(f"{kind}: no padding, fused attention, logits only where they are supervised")
    note_context(model.config, options.max_length)
    if not options.lora_rank:
        return model
    torch.manual_seed(options.seed)  # for the adapter's initial weights
    return add_adapter(
        model,
        data.new_tokens,
        rank=options.lora_rank,
        alpha=options.lora_alpha,
        dropout=options.lora_dropout,
        target=options.lora_target,
    )


def fit(run: Run, data: Data, trainer: SFTTrainer) -> bool:
    """Take the optimizer steps that are left. Returns whether there is a new model to save."""
    for line in [*opening_lines(trainer, check_disk_space(trainer, run.directory)), *opening_advice(run)]:
        say(line)
    if run.is_finished(trainer.total_steps):
        say(f"{run.directory}: finished already; more --epochs or --max-steps would continue it")
        return False
    if trainer.is_world_process_zero():
        run.description["machine"] = describe_machine(trainer)
        run.write_record()
        run.keep_held_out(data.held_out)
        trainer.add_callback(RecordInEffect(run, trainer))
        remove_report(run.directory)
        run.note_signals()
    run.stop_request.ends_at_once = False
    if run.checkpoint:
        trainer.add_callback(LoadedCheckpoint(trainer, run.checkpoint))
    trainer.add_callback(LongestBatchTrial(trainer))
    if run.must_convert:
        with universal_checkpoint(run.checkpoint, trainer) as converted:
            trainer.train(resume_from_checkpoint=str(converted))
    else:
        trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    if trainer.stopped_by:
        run.stop_request.confirm(trainer.state.global_step, trainer.stopped_by)
        say(f"stopped at step {trainer.state.global_step} by {trainer.stopped_by}; to continue:")
        say(command_to_continue(run.command, run.directory.name))
    return not trainer.stopped_by


def finish(run: Run, data: Data, trainer: SFTTrainer) -> None:
    """Save the model with its card, and write the report."""
    model = export_model(trainer, data.tokenizer, run.directory)
    if trainer.is_world_process_zero():
        with write_failure_refused(run.directory, "make room, and continue by --resume"):
            report = make_report(trainer, run.directory, run.command, run.description)
            draw_curves(report["history"], run.directory / PICTURE)
            write_card_of_run(model, data.tokenizer, run.directory, report, run.options)
            write_report(report, run.directory)
        run.stop_request.withdraw()
    say(f"saved {model}; talk to it: python -m inference.chat --model {run.directory}")


if __name__ == "__main__":
    run_command(main)
