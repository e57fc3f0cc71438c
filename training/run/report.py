"""The lines that a run opens with, and the report at its end: report.json and report.md."""

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import Trainer

from training.common.console import bytes_text, evaluation_prefix
from training.common.files import write_atomic
from training.cost.memory import model_states, numel, stored_bytes, trainable_weights
from training.data.examples import Examples
from training.model.lora import has_adapter
from training.model.model_card import PICTURE_LINE
from training.run.curves import evaluations_of
from training.run.deepspeed_values import sum_width
from training.run.machine import machine_text

PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "datasets")


def opening_lines(trainer: Trainer, disk_bytes: int) -> list[str]:
    """The lines that a run opens with: its model, data, steps, memory and disk."""
    model, args = trainer.model, trainer.args
    parameters = sum(numel(weight) for weight in model.parameters())
    trainable = sum(numel(weight) for weight in trainable_weights(model))
    kind = type(model.get_base_model() if has_adapter(model) else model).__name__
    adapter = (
        f", {trainable / 1e6:,.2f} M of them an adapter's and trainable" if trainable < parameters else ""
    )
    rows, tokens = len(trainer.train_dataset), int(trainer.train_dataset.lengths.sum())
    memory, host_memory = expected_memory(trainer)
    return [
        f"model     {kind}, {parameters / 1e6:,.1f} M parameters, vocabulary "
        f"{model.config.vocab_size:,}{adapter}",
        f"data      {rows:,} rows of {tokens:,} tokens an epoch",
        f"run       {trainer.total_steps:,} steps on {args.world_size} process(es), "
        f"{f'ZeRO stage {zero_stage(trainer)}' if trainer.is_deepspeed_enabled else 'no DeepSpeed'}, "
        f"{'bf16' if args.bf16 else 'float32'}",
        f"memory    {bytes_text(memory)} a process for weights, gradients and optimizer"
        + (f", and {bytes_text(host_memory)} of the host for all" if host_memory else "")
        + " (computed; activations come on top)",
        f"disk      at most {bytes_text(disk_bytes)} for checkpoints and the model (computed), in "
        f"{trainer.run_dir}",
    ]


def zero_stage(trainer: Trainer) -> int:
    return trainer.args.hf_deepspeed_config.get_value("zero_optimization.stage", 0)


def expected_memory(trainer: Trainer) -> tuple[int, int]:
    """The bytes of weights, gradients and optimizer: (of each rank, of the host for all ranks by offload)."""
    weights = list(trainer.model.parameters())
    trainable = sum(numel(weight) for weight in trainable_weights(trainer.model))
    frozen = sum(stored_bytes(weight) for weight in weights if not weight.requires_grad)
    uses_zero = trainer.is_deepspeed_enabled
    config = trainer.args.hf_deepspeed_config.config if uses_zero else {}
    dtype = trainable_weights(trainer.model)[0].dtype
    states = model_states(
        trainable,
        frozen,
        max(numel(weight) for weight in weights),
        stage=max(2, zero_stage(trainer)) if uses_zero else 0,
        offload=uses_zero and trainer.args.hf_deepspeed_config.is_offload(),
        ranks=trainer.args.world_size,
        width=dtype.itemsize,
        sum_width=sum_width(config, dtype),
    )
    return states.of_rank, states.offloaded


def make_report(trainer: Trainer, run_dir: Path, command: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """What report.json says of a run that has taken all of its steps. record: the run's `record.describe`."""
    history = trainer.state.log_history
    training = [entry for entry in history if "loss" in entry]
    evaluations = evaluations_of(history)
    best = {
        name: min(entries, key=lambda entry: entry[f"{evaluation_prefix(name)}_loss"])
        for name, entries in evaluations.items()
    }
    last = {name: entries[-1] for name, entries in evaluations.items()}
    held_out = trainer.evaluated.get("", ())
    return {
        "command": command,
        "model": str(run_dir),
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "run": dict(record),
        "examples": {"an epoch": len(trainer.train_dataset), "held out": len(held_out)},
        "data": findings_of(trainer.train_dataset),
        "evaluation_data": {
            name: findings_of(examples) for name, examples in trainer.evaluated.items() if name
        },
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "tokens_per_second": _mean(training, "tokens_per_second"),
        "learnt_tokens_per_second": _mean(training, "learnt_tokens_per_second"),
        "matrix_product_share": _mean(training, "matrix_product_share"),
        "first_loss": training[0]["loss"] if training else None,
        "last_loss": training[-1]["loss"] if training else None,
        "best_evaluation": best.pop("", None),
        "last_evaluation": last.pop("", None),
        "evaluations": {name: {"best": best[name], "last": last[name]} for name in last},
        "history": history,
    }


def findings_of(examples: Examples) -> dict[str, dict[str, Any]]:
    """The findings' summary of each file that examples were made of, and the file's hash, by its path."""
    return {file.data_path: {"hash": file.file_fingerprint, **file.summary} for file in examples.files}


def write_report(report: Mapping[str, Any], run_dir: Path) -> None:
    """Write report.md, and report.json last: with it, the run is finished."""
    write_atomic(run_dir / "report.md", _as_markdown(report))
    text = json.dumps(report, ensure_ascii=False, indent=1, default=str)
    write_atomic(run_dir / "report.json", text)


def remove_report(run_dir: Path) -> None:
    """Remove the report of a run that goes on: only a run that is finished has one."""
    for name in ("report.json", "report.md"):
        (run_dir / name).unlink(missing_ok=True)


def steps_of_report(run_dir: Path) -> int:
    """The optimizer steps of the model in a run directory, or 0 where no report tells them."""
    try:
        return json.loads((run_dir / "report.json").read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError):
        return 0


def _mean(entries: list[dict[str, float]], name: str) -> float | None:
    values = [entry[name] for entry in entries if name in entry]
    return sum(values) / len(values) if values else None


def _as_markdown(report: Mapping[str, Any]) -> str:
    rows = {"model": f"`{report['model']}`", **run_facts(report)}
    for path, summary in report["data"].items():
        kept = summary["kept"]
        rows[f"`{path}`"] = (
            f"{kept['rows']:,} rows of {kept['tokens']:,} tokens, {kept['learnt']:,} supervised"
        )
    if "machine" in report["run"]:
        rows["machine"] = machine_text(report["run"]["machine"])
        rows["attention"] = report["run"]["machine"]["attention"]
    rows |= code_facts(report)
    return (
        f"# {Path(report['model']).name}\n\n```bash\n{report['command']}\n```\n\n"
        f"{table_of_facts(rows)}\n\n{PICTURE_LINE}\n"
    )


def run_facts(report: Mapping[str, Any]) -> dict[str, str]:
    """The steps, the losses and the speed of a run, as texts."""

    def number(name: str, form: str) -> str:
        return "-" if report[name] is None else format(report[name], form)

    of_held_out = {which: report[f"{which}_evaluation"] for which in ("best", "last")}
    evaluations = {
        f"{which} evaluation loss{f' of {name}' if name else ''}": (
            f"{entry[f'{evaluation_prefix(name)}_loss']:.4f} at step {entry['step']}"
        )
        for name, entries in {"": of_held_out, **report["evaluations"]}.items()
        for which, entry in entries.items()
        if entry
    } or {"evaluation": "none"}
    supervised = number("learnt_tokens_per_second", ",.0f")
    return {
        "steps, epochs": f"{report['steps']:,}, {report['epochs']:.2f}",
        "training loss, first and last": f"{number('first_loss', '.4f')}, {number('last_loss', '.4f')}",
        **evaluations,
        "tokens a second": f"{number('tokens_per_second', ',.0f')}, {supervised} of them supervised",
        "share of the GEMM bound": number("matrix_product_share", ".0%"),
    }


def code_facts(report: Mapping[str, Any]) -> dict[str, str]:
    """The commit and the versions of what computed a run, as texts."""
    versions = ", ".join(f"{name} {of}" for name, of in report["versions"].items())
    return {"git commit": report["git_commit"] or "-", "versions": versions}


def table_of_facts(facts: Mapping[str, str]) -> str:
    """A table in Markdown of two columns without a head."""
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())])


def git_commit() -> str | None:
    """The commit of this code, with `+` if files have changed; None outside a git checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
