"""The options of a run, each declared once: name, type, default, help and group.

The command line of `training.trainer`, the file of --config and options.yaml in the run directory come from
here, and so do the checks of options that contradict each other. `training.plan` offers those in PLANNED.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from training.common.columns import PARTS, RowColumns, parse_columns
from training.common.command_line import option
from training.common.errors import UserError
from training.common.files import user_cache_dir
from training.common.option_texts import (
    Source,
    parse_count_or_share,
    parse_layer_names,
    parse_source,
    parse_system,
    source_text,
)
from training.consts import CONTEXT

# The default of --lr: for all weights, and for an adapter. `tests.benchmarks.new_rows` compares the latter.
LEARNING_RATE, ADAPTER_LEARNING_RATE = 1e-5, 1e-4

BATCH_SIZE = 8

# The default of --test-size where no file of --eval-data-path is given.
TEST_SIZE = 0.05

# What is done about a row that cannot be used.
OnBadRow = Literal["error", "drop"]

# Which answers of a row are learnt: all, or the last one, the others being context.
Learn = Literal["all", "last"]

Schedule = Literal["constant", "linear", "cosine"]
WarmupShape = Literal["linear", "log"]

# Who is sent the log entries of a run, beside metrics.jsonl.
ReportTo = Literal["tensorboard", "wandb", "swanlab", "mlflow", "none"]


def default_cache_dir() -> Path:
    """`yayi` in the user's cache directory (XDG_CACHE_HOME, or ~/.cache)."""
    return user_cache_dir() / "yayi"


DATA, MODEL, ADAPTER = "Data", "Model", "Adapter, instead of all weights"
OPTIMISATION, MACHINE, PROGRESS = "Optimisation", "Memory and machine", "Progress"


@dataclass
class Options:
    """The options of a run, with every default resolved.

    Raises UserError for options that contradict each other. Where `tokens_per_batch` is given,
    `per_device_train_batch_size` is None; without `lora_rank`, `lora_alpha` is None; `max_length` is None
    until `training.model.context.longest_row` has asked the model. `default_names` names the options that
    were not given; where the caller does not say, those whose default depends on another.
    """

    data_path: tuple[Source, ...] = option(
        (),
        DATA,
        "Rows to train on: a file (JSON Lines, JSON, CSV, Excel, Parquet), a folder, a pattern such as "
        "'rows/*.jsonl', or a data set on the hub, as NAME#CONFIG/SPLIT, or modelscope:NAME. The option may "
        "be given several times; a weight says how often each row is seen in an epoch, as in FILE:0.5.",
        required=True,
        multiple=True,
        parse=parse_source,
        metavar="FILE[:WEIGHT]",
        planned=True,
    )
    on_bad_row: OnBadRow = option(
        "error",
        DATA,
        "Whether a row that cannot be used is an error, or is dropped and counted.",
        planned=True,
    )
    columns: RowColumns | None = option(
        None,
        DATA,
        "Which column holds what, for all rows of the command, as in question=问题,answer=答案; the parts: "
        f"{', '.join(PARTS)}.",
        parse=parse_columns,
        metavar="PART=COLUMN,...",
        planned=True,
    )
    system: str | None = option(
        None,
        DATA,
        "System text of rows that have none; it is saved with the model, and what talks to that uses it.",
        parse=parse_system,
        metavar="TEXT",
        shown_default="that of --input-model, or the original's intro",
        planned=True,
    )
    learn: Learn = option("all", DATA, "Learn all answers of a dialogue, or only its last one.", planned=True)
    cache_dir: Path = option(
        default_cache_dir,
        DATA,
        "Directory in which encoded rows are kept between runs.",
        shown_default="~/.cache/yayi",
        planned=True,
    )
    max_length: int = option(
        None,
        DATA,
        "Tokens of the longest row; a longer one is cut after the last turn that fits.",
        at_least=1,
        shown_default=f"{CONTEXT}, or what the model can read if that is less",
        planned=True,
    )
    test_size: int | float = option(
        None,
        DATA,
        "Rows held out of --data-path for evaluation: a count, or a ratio of all rows.",
        parse=parse_count_or_share,
        metavar="COUNT|RATIO",
        shown_default=f"{TEST_SIZE}; 0 with --eval-data-path",
        planned=True,
    )
    eval_data_path: tuple[str, ...] = option(
        (),
        DATA,
        "Rows to evaluate on, as --data-path. The option may be given several times; each gets a loss of its "
        "own, named after the file.",
        multiple=True,
        is_path=True,
        planned=True,
    )

    input_model: str = option(
        "",
        MODEL,
        "Model to start from: a directory, or a name on the hub, or modelscope:NAME.",
        required=True,
        planned=True,
        is_model=True,
    )
    local_output_dir: Path = option(
        Path(), MODEL, "Directory in which the run directory is made.", required=True
    )
    run_name: str | None = option(
        None, MODEL, "Name of the run directory.", shown_default="INPUT-MODEL-sft-TIME"
    )
    resume: bool = option(False, MODEL, "Continue the run of --run-name from its newest checkpoint.")
    resume_anyway: bool = option(
        False, MODEL, "Continue the run even if data, system text, model, batch size or seed have changed."
    )

    lora_rank: int | None = option(
        None, ADAPTER, "Freeze all weights, and train a LoRA adapter of this rank.", at_least=1, planned=True
    )
    lora_alpha: int | None = option(
        None, ADAPTER, "Scale of the adapter, times its rank.", at_least=1, shown_default="twice the rank"
    )
    lora_dropout: float = option(
        0.0,
        ADAPTER,
        "Share of the adapter's inputs that are zeroed at random.",
        at_least=0,
        below=1,
        planned=True,
    )
    lora_target: str = option(
        "auto",
        ADAPTER,
        "Names of the layers that get an adapter, separated by commas; auto means every linear layer "
        "but the head.",
        parse=parse_layer_names,
        metavar="NAME,...",
        planned=True,
    )
    load_in_4bit: bool = option(
        False, ADAPTER, "Keep the frozen weights of linear layers in 4 bits.", planned=True
    )

    epochs: float = option(2.0, OPTIMISATION, "Passes over the data.", above=0, planned=True)
    max_steps: int | None = option(
        None,
        OPTIMISATION,
        "Optimizer steps after which the run ends, whatever --epochs says.",
        at_least=1,
        planned=True,
    )
    lr: float = option(
        None,
        OPTIMISATION,
        "Highest learning rate.",
        above=0,
        shown_default=f"{LEARNING_RATE:g}; {ADAPTER_LEARNING_RATE:g} with --lora-rank",
    )
    lr_scheduler: Schedule = option(
        "constant", OPTIMISATION, "Course of the learning rate after the warm-up."
    )
    warmup_steps: int | float = option(
        100,
        OPTIMISATION,
        "Warm-up, over which the learning rate rises: a number of optimizer steps, or a share of "
        "the run below 1.",
        parse=parse_count_or_share,
        metavar="COUNT|SHARE",
    )
    warmup_shape: WarmupShape = option(
        "linear",
        OPTIMISATION,
        "How the learning rate rises in the warm-up: in equal steps, or by the logarithm, as the original's "
        "did: DeepSpeed's WarmupLR, whose first two steps have the rate 0. A log warm-up takes at least 2 "
        "steps; 0 is no warm-up.",
    )
    per_device_train_batch_size: int | None = option(
        None,
        OPTIMISATION,
        "Examples in a micro-batch of one card.",
        at_least=1,
        shown_default=str(BATCH_SIZE),
        planned=True,
    )
    tokens_per_batch: int | None = option(
        None,
        OPTIMISATION,
        "Fill each micro-batch with examples up to this number of tokens, instead of a fixed number "
        "of examples.",
        at_least=1,
        planned=True,
    )
    per_device_eval_batch_size: int = option(
        BATCH_SIZE, OPTIMISATION, "Examples in an evaluation batch of one card.", at_least=1
    )
    gradient_accumulation_steps: int = option(
        1, OPTIMISATION, "Micro-batches in one optimizer step.", at_least=1, planned=True
    )
    weight_decay: float = option(
        0.0,
        OPTIMISATION,
        "AdamW's weight decay; where it is not given, that of DeepSpeed's file counts.",
        at_least=0,
    )
    max_grad_norm: float = option(
        1.0,
        OPTIMISATION,
        "Norm to which the gradient is clipped, or 0 for no clipping; where it is not given, "
        '"gradient_clipping" in DeepSpeed\'s file counts.',
        at_least=0,
    )
    seed: int = option(
        515,
        OPTIMISATION,
        "Seed for choosing held-out rows, the order of examples, and new weights.",
        at_least=0,
        planned=True,
    )

    deepspeed: str | None = option(
        None,
        MACHINE,
        "DeepSpeed's JSON configuration file; without it, the run does without DeepSpeed.",
        is_path=True,
    )
    bf16: bool = option(True, MACHINE, "Compute in bfloat16, or in float32.", planned=True)
    gradient_checkpointing: bool = option(
        True, MACHINE, "Compute activations again in the backward pass instead of keeping them.", planned=True
    )
    ddp_timeout: int = option(
        1800, MACHINE, "Seconds that a rank waits for another before it gives up.", at_least=1
    )
    plan: bool = option(False, MACHINE, "Say what the run would take on this machine, and stop.")
    local_rank: int | None = option(
        None,
        MACHINE,
        "Number of the card on its node; set by DeepSpeed's launcher, not by people.",
        flag="--local_rank",
    )

    logging_steps: int = option(10, PROGRESS, "Optimizer steps between log lines.", at_least=1)
    report_to: tuple[ReportTo, ...] = option(
        ("tensorboard",),
        PROGRESS,
        "Who is sent the log lines, beside metrics.jsonl in the run directory. The option may be given "
        "several times.",
        multiple=True,
    )
    eval_steps: int = option(100, PROGRESS, "Optimizer steps between evaluations.", at_least=1)
    save_steps: int = option(100, PROGRESS, "Optimizer steps between checkpoints.", at_least=1)
    save_total_limit: int = option(3, PROGRESS, "Checkpoints to keep; older ones are removed.", at_least=1)
    save_only_model: bool = option(
        False,
        PROGRESS,
        "Save checkpoints without the optimizer: they are smaller, and --resume cannot use them.",
        planned=True,
    )

    default_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.resume |= self.resume_anyway
        self.report_to = tuple(dict.fromkeys(self.report_to))  # each once
        self._check()
        if self.test_size is None:
            self.test_size = 0 if self.eval_data_path else TEST_SIZE
            self._is_default("test_size")
        if self.lora_rank and self.lora_alpha is None:
            self.lora_alpha = 2 * self.lora_rank
            self._is_default("lora_alpha")
        if self.lr is None:
            self.lr = ADAPTER_LEARNING_RATE if self.lora_rank else LEARNING_RATE
            self._is_default("lr")
        if self.per_device_train_batch_size is None and not self.tokens_per_batch:
            self.per_device_train_batch_size = BATCH_SIZE

    def _is_default(self, name: str) -> None:
        if name not in self.default_names:
            self.default_names += (name,)

    def _check(self) -> None:
        if self.tokens_per_batch and self.per_device_train_batch_size:
            raise UserError(
                "--tokens-per-batch and --per-device-train-batch-size contradict each other; give one"
            )
        if self.run_name and Path(self.run_name).name != self.run_name:
            raise UserError(f"--run-name {self.run_name}: not a plain name; --local-output-dir says where")
        if self.resume and not self.run_name:
            raise UserError("--resume: which run? Give its --run-name")
        if self.load_in_4bit and not self.lora_rank:
            raise UserError("--load-in-4bit: weights in 4 bits cannot be trained; give a --lora-rank as well")
        if "none" in self.report_to and len(self.report_to) > 1:
            raise UserError("--report-to none: contradicts the other --report-to; leave one of them out")

    @property
    def micro_batch(self) -> dict[str, int]:
        """What fills a micro-batch: {"batch_size": examples} or {"tokens_per_batch": tokens}."""
        if self.tokens_per_batch:
            return {"tokens_per_batch": self.tokens_per_batch}
        return {"batch_size": self.per_device_train_batch_size}


# The options that belong to one start of a run rather than to the run.
OF_ONE_START = ("resume", "resume_anyway", "plan", "local_rank")


# The names of all options, in their order.
OPTION_NAMES = tuple(each.name for each in fields(Options) if "group" in each.metadata)

# The options that change what `training.plan` answers, and those that say where its rows come from.
PLANNED = tuple(each.name for each in fields(Options) if each.metadata.get("planned"))


def values_of_run(options: Options) -> dict[str, Any]:
    """The run's options by name, for options.yaml; given to `--config`, they make the same run."""
    values = {name: getattr(options, name) for name in OPTION_NAMES if name not in OF_ONE_START}
    return values | {
        "data_path": [source_text(source) for source in options.data_path],
        "eval_data_path": list(options.eval_data_path) or None,
        "report_to": list(options.report_to),
    }
