"""The model card of a run: the section that says how the model was taught."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from training.common.command_line import as_yaml
from training.common.options import Options, values_of_run
from training.data.audit import short_form
from training.data.file_kinds import has_rows_by_name
from training.data.hub_rows import HUB_NAME
from training.model.model_card import PICTURE, TAUGHT_TITLE, Taught, fenced, write_model_card
from training.run.machine import hardware_text
from training.run.report import code_facts, run_facts, table_of_facts

# The options that say where this run put its files, and nothing about the model.
OF_THIS_PLACE = ("local_output_dir", "run_name", "cache_dir")

# A bar within a cell of a table.
BAR = "\\|"


def write_card_of_run(
    model_dir: Path,
    tokenizer: PreTrainedTokenizerFast,
    run_dir: Path,
    report: Mapping[str, Any],
    options: Options,
) -> None:
    """Write the card of the model, or of the adapter, that a run has saved in `model_dir`.

    report: what `run.report.make_report` gives; the picture of the losses is in `run_dir` by then.
    """
    made = (
        ", trained on instructions" if options.lora_rank else " with all weights fine-tuned on instructions"
    )
    picture = run_dir / PICTURE
    taught = Taught(
        training_section(report, options), hub_data_sets(options), picture if picture.exists() else None
    )
    write_model_card(model_dir, tokenizer, options.input_model, made, taught)


def training_section(report: Mapping[str, Any], options: Options) -> str:
    """The section, in Markdown, of what a run's report says."""
    record, examples = report["run"], report["examples"]
    facts = {
        "trained by": f"`training.trainer`, {record['optimizer']}",
        "a step": ", ".join(f"{count:,} {of}" for of, count in record["global batch"].items()),
        **run_facts(report),
    }
    if "machine" in record:
        facts["machine"] = hardware_text(record["machine"])
    values = {name: value for name, value in values_of_run(options).items() if name not in OF_THIS_PLACE}
    return "\n\n".join(
        [
            TAUGHT_TITLE,
            table_of_facts(facts | code_facts(report)),
            "### Data",
            "\n".join(data_table(report)),
            f"Examples an epoch: {examples['an epoch']:,}; held out for evaluation: "
            f"{examples['held out']:,}. The hash of a file of JSON is that of `b2sum -l 128`; of a table, "
            "its kind and sheet are hashed as well. What was found in the rows:",
            fenced("\n".join(findings(report)), "text"),
            "### Options",
            "As a file for `--config`:",
            fenced(as_yaml(values), "yaml"),
        ]
    )


def all_files(report: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What each file is for, its path, and the summary of its findings."""
    for path, summary in report["data"].items():
        yield "training", path, summary
    for name, files in report["evaluation_data"].items():
        for path, summary in files.items():
            yield f"evaluation {name}", path, summary


def data_table(report: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a table of the files: how many rows each has, and what is used of them."""
    yield "| for | file | rows | used | tokens | supervised tokens | BLAKE2b |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for purpose, path, summary in all_files(report):
        kept = summary["kept"]
        counts = (summary["rows"], kept["rows"], kept["tokens"], kept["learnt"])
        cells = [purpose, f"`{path}`", *(f"{count:,}" for count in counts), f"`{summary['hash']}`"]
        yield f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"


def findings(report: Mapping[str, Any]) -> Iterator[str]:
    """What a run says of its rows when it begins: among others which were dropped or cut, and why."""
    for _, path, summary in all_files(report):
        yield from short_form(path, summary)


def hub_data_sets(options: Options) -> list[str]:
    """The names of the data sets on the hub that a run was taught."""
    names = (source.path.partition("#")[0] for source in options.data_path if is_data_set(source.path))
    return list(dict.fromkeys(names))


def is_data_set(path: str) -> bool:
    """Whether a --data-path that could be read is a data set on the hub."""
    return bool(HUB_NAME.fullmatch(path)) and not os.path.exists(path) and not has_rows_by_name(path)
