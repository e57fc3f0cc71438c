"""run.json in the run directory: what a run goes by, and whether a later start would go on with the same."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from training.common.command_line import parse_value, text_of_value
from training.common.console import say
from training.common.errors import UserError, first_line
from training.common.hub import RECORD, is_adapter
from training.common.modelscope import local_path
from training.common.options import OF_ONE_START, OPTION_NAMES, Options
from training.consts import INTRO
from training.data.examples import Examples, Together
from training.data.tool_rows import data_has_tools
from training.run.deepspeed_values import describe_optimizer, gradient_sums

# Options that are this start's own. Where encoded rows are kept may be another place on another machine.
NOT_KEPT = (*OF_ONE_START, "cache_dir")


class Beginning(NamedTuple):
    """What a run keeps to from its beginning on, because its split and its embedding rows depend on it.

    together: which rows are on one side of the split. adds_pad: whether a base without a pad token gets one.
    has_tools: whether the data has tools, so that the model gets their control token.
    """

    together: Together
    adds_pad: bool
    has_tools: bool


def beginning(record: Mapping[str, Any] | None, options: Options) -> Beginning:
    """What the run of `record` began with; with None, what a run with these options begins with.

    Earlier versions did not record these: they split by the first prompts, added no pad token, and knew no
    tools. Raises UserError for data that cannot be read.
    """
    if record is None:
        return Beginning("whole prompts", adds_pad=True, has_tools=data_has_tools(options))
    return Beginning(
        record.get("together", "first prompts"),
        adds_pad=record.get("adds pad token", False),
        has_tools=record.get("tools", False),
    )


def describe(
    options: Options,
    deepspeed_config: Mapping[str, Any] | None,
    training: Examples,
    held_out: Examples,
    world_size: int,
    begun: Beginning,
    evaluation_files: Mapping[str, Examples],
    system: str,
) -> dict[str, Any]:
    """The content of run.json: what must not change for a run to continue as if it had never stopped, and in
    "options" every option as text, from which a later start takes those that are not given.

    begun: what the run has kept to since it began. evaluation_files: the examples of --eval-data-path, by
    name. system: the system text of rows without one.
    """
    zero = (deepspeed_config or {}).get("zero_optimization", {}).get("stage", 0)
    data = hashlib.blake2b(digest_size=16)
    for examples in (training, held_out):
        data.update(examples.fingerprint.encode())
    ranks = world_size * options.gradient_accumulation_steps
    return {
        "data": data.hexdigest(),
        "evaluation data": {name: examples.fingerprint for name, examples in evaluation_files.items()},
        "system": system,
        "model": _model_fingerprint(options.input_model),
        "seed": options.seed,
        "global batch": (
            {"micro-batches": ranks, "tokens": options.tokens_per_batch}
            if options.tokens_per_batch
            else {"rows": ranks * options.micro_batch["batch_size"]}
        ),
        "optimizer": f"{f'ZeRO stage {zero}' if deepspeed_config else 'no DeepSpeed'}, "
        f"{'bf16' if options.bf16 else 'float32'}{_adapter(options)}",
        "optimizer state": describe_optimizer(deepspeed_config) if deepspeed_config else None,
        "gradient sums": gradient_sums(deepspeed_config or {})
        or ("bf16" if deepspeed_config and options.bf16 else "fp32"),
        "ranks": world_size,
        "together": begun.together,
        "adds pad token": begun.adds_pad,
        "tools": begun.has_tools,
        "options": {name: text_of_value(getattr(options, name)) for name in OPTION_NAMES},
    }


def _options_of(one: str, other: str) -> str:
    """The options that say what differs between two descriptions of an optimizer."""
    parts = zip(*(f"{text}, , ".split(", ", 2) for text in (one, other)), strict=True)
    deepspeed, dtype, adapter = (here != there for here, there in parts)
    names = ["--deepspeed"] * deepspeed + ["--bf16"] * dtype
    if adapter:
        names += ["--lora-rank", "--lora-alpha", "--lora-target", "--load-in-4bit"]
    return ", ".join(names)


def check_checkpoint(
    checkpoint: Path, content: Mapping[str, Any], config: Mapping[str, Any], world_size: int
) -> None:
    """Raise UserError where DeepSpeed could not load a checkpoint, or would load it wrongly.

    content: of its COMPLETE.json; earlier versions did not write the state of the optimizer there.
    """
    now = describe_optimizer(config)
    before = content.get("optimizer state") or now
    remedy = f"or begin a new run from its model (--input-model {checkpoint}, another --run-name)"
    if is_adapter(str(checkpoint)):
        remedy = "or merge it (training.merge_adapter) and begin a new run from that model"
    for name, what in (("kind", '"optimizer"'), ("round_robin_gradients", '"round_robin_gradients"')):
        if before[name] != now[name]:
            raise UserError(
                f"{checkpoint}: was written with {what} {json.dumps(before[name])}, and DeepSpeed's file has "
                f"{json.dumps(now[name])} now, which cannot read it; write it as it was, {remedy}"
            )
    if now["round_robin_gradients"] and content["world_size"] != world_size:
        raise UserError(
            f'{checkpoint}: was written with "round_robin_gradients" by {content["world_size"]} process(es), '
            f"and {world_size} would scramble the weights; continue on as many as before, {remedy}"
        )


def _adapter(options: Options) -> str:
    if not options.lora_rank:
        return ""
    bits = ", 4 bits" if options.load_in_4bit else ""
    return f", LoRA of rank {options.lora_rank}, alpha {options.lora_alpha}, {options.lora_target}{bits}"


def _model_fingerprint(path: str) -> str:
    """A hash of a directory's config.json and the sizes of its weight files; for a hub model, its name."""
    path = local_path(path)
    if not os.path.isdir(path):
        return path
    content = hashlib.blake2b(Path(path, "config.json").read_bytes(), digest_size=16)
    for file in sorted(Path(path).glob("*.safetensors")) + sorted(Path(path).glob("*.bin")):
        content.update(f"{file.name} {file.stat().st_size}\n".encode())
    return content.hexdigest()


def read_record(run_dir: Path) -> dict[str, Any]:
    """What a run's last start went by. Raises UserError where the run directory has no record.

    Records of earlier versions have None where a default depends on another option; it is filled in here.
    """
    try:
        record = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run_dir / RECORD}: cannot be read ({first_line(error)}); there is no run to continue"
        ) from None
    options = record["options"]
    if options.get("lora_rank", "None") != "None" and options["lora_alpha"] == "None":
        options["lora_alpha"] = str(2 * int(options["lora_rank"]))
        record["optimizer"] = record["optimizer"].replace("alpha None", f"alpha {options['lora_alpha']}")
    if options.get("tokens_per_batch", "None") != "None":
        options["per_device_train_batch_size"] = "None"
    return record


def keep_recorded(options: Options, record: Mapping[str, Any]) -> Options:
    """The options, of which those that were not given stay what the record has."""
    before = record["options"]
    names = [name for name in options.default_names if name in before and name not in NOT_KEPT]
    if "epochs" not in options.default_names and "max_steps" in names:
        names.remove("max_steps")  # it would win over the epochs that were given
    for one, other in (
        ("tokens_per_batch", "per_device_train_batch_size"),
        ("per_device_train_batch_size", "tokens_per_batch"),
    ):
        if one not in options.default_names and getattr(options, one) is not None and other in names:
            names.remove(other)  # the two exclude each other, and one was given
    kept = {name: parse_value(Options, name, before[name]) for name in names if before[name] != "None"}
    if "tokens_per_batch" in kept:
        kept["per_device_train_batch_size"] = None
    return replace(options, **kept)


def keep_global_batch(options: Options, record: Mapping[str, Any], world_size: int) -> Options:
    """Choose the accumulation steps that keep the run's global batch on this number of ranks.

    Those that are given stay on as many ranks as the run began with, and under --resume-anyway.
    """
    is_given = "gradient_accumulation_steps" not in options.default_names
    if is_given and (options.resume_anyway or record["ranks"] == world_size):
        return options
    batch = record["global batch"]
    wanted = batch.get("micro-batches", batch.get("rows"))
    one = world_size * (1 if "micro-batches" in batch else options.micro_batch.get("batch_size", 1))
    if wanted % one != 0 or options.gradient_accumulation_steps == wanted // one:
        return options
    say(
        f"{world_size} process(es), and the run began with {record['ranks']}: "
        f"--gradient-accumulation-steps {wanted // one} keeps the global batch"
    )
    return replace(options, gradient_accumulation_steps=wanted // one)


def check_same_run(run_dir: Path, now: Mapping[str, Any], record: Mapping[str, Any], anyway: bool) -> None:
    """Raise UserError where the run would not go on as it was; say which other options have changed.

    anyway: warn instead of raising, except for another optimizer, whose checkpoint cannot be read.
    """
    if now["optimizer"] != record["optimizer"]:
        raise UserError(
            f"{run_dir}: began with {record['optimizer']}, and its optimizer is not one of "
            f"{now['optimizer']}; give {_options_of(now['optimizer'], record['optimizer'])} as before"
        )
    # Earlier versions had no evaluation data, or gave a pattern's another name.
    evaluated, evaluated_before = (
        sorted(description.get("evaluation data", {}).values()) for description in (now, record)
    )
    changed_names = [
        name for name in ("data", "model", "global batch", "seed") if now.get(name, {}) != record[name]
    ]
    changed_names += ["evaluation data"] * (evaluated != evaluated_before)
    # Earlier versions knew no system text but the intro, and did not record it.
    changed_names += ["system text"] * (now.get("system", INTRO) != record.get("system", INTRO))
    if changed_names:
        text = f"{run_dir}: not the same {', '.join(changed_names)} as this run's"
        if not anyway:
            raise UserError(f"{text}; pass --resume-anyway if you want that, or give another --run-name")
        say(f"WARNING: {text}; going on anyway")
    # Earlier versions did not record it: DeepSpeed then added up in the type of the weights.
    in_bf16 = record["optimizer"].startswith("ZeRO") and "bf16" in record["optimizer"]
    before, sums = record.get("gradient sums", "bf16" if in_bf16 else "fp32"), now.get("gradient sums")
    if sums not in (before, None):
        say(f"gradients of several micro-batches are added up in {sums}, and were in {before}")
    for name, value in now["options"].items():
        before = record["options"].get(name, value)  # an option that is newer than the run has not changed
        if before != value and name not in OF_ONE_START:
            say(f"--{name.replace('_', '-')} is {value}, and was {before}")
