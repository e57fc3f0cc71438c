"""The sections of the technical report: what each measures here, and how printed measurements are read.

A section's function returns what is kept of it in the results file. Those that have a benchmark of their own
run it in a process of its own, as a user would, and read its table.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.benchmarks.alibi import bias_errors, logit_errors
from tests.benchmarks.attention import attention_seconds
from tests.benchmarks.labels import supervised_by_both
from tests.benchmarks.raters import QUESTIONS, separated_models
from tests.benchmarks.train_step import BASES
from training.common.console import say
from training.common.errors import UserError
from training.consts import NOT_SUPERVISED
from training.cost.flops import Tokens, matrix_products
from training.cost.memory import empty_model
from training.data.encoded import read_conversations
from training.extend_vocabulary import (
    CANDIDATES,
    as_tokens,
    choose,
    copy_for_text,
    learn_candidates,
    read_corpus,
)
from training.model.loss import tokens_at_once
from training.text.encoding import encode
from training.text.tokenizer import load_base_tokenizer, load_tokenizer

ROOT = Path(__file__).parents[2]
SAMPLES = "data/yayi_train_example.json"
DIALOGUES = "data/yayi_train_example_multi_rounds.json"
QUESTIONS_FILE = "data/evaluation/objective_example.jsonl"

# Rows of a step, and steps, that three bases take in some minutes on two cores.
STEP_ROWS, STEPS = 4, 1

# Rows of a whole step, and the variables with which glibc keeps 16 GiB of freed memory for the next one.
WHOLE_STEP_ROWS = 8
KEEPS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}

PIECES = (30, 100, 300, 1000)


class Settings(NamedTuple):
    """What the sections need that this repository does not hold."""

    directory: Path  # for models and answers; what is there already is taken as it is
    base: str | None = None  # a real base model
    corpora: tuple[str, ...] = ()  # rows of a domain, beside the samples
    tokenizers: tuple[str, ...] = ()  # directories of tokenizers, beside the tiny Bloom's

    @property
    def tiny_bloom(self) -> str:
        """The directory of a tiny Bloom, which is made where it is missing."""
        path = self.directory / "tiny-bloom"
        if not path.exists():
            printed("training.tiny_bloom", f"--data-path {SAMPLES} --output-dir {path}")
        return str(path)


def this_machine() -> str:
    """The processor, the card if there is one, and torch, in a line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE)):
        name = found[1]
    bf16 = "with" if "avx512_bf16" in (cpuinfo.read_text() if cpuinfo.exists() else "") else "without"
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    return (
        f"{name}, {os.cpu_count()} cores {bf16} bf16 instructions, {threads} thread(s){card}, "
        f"torch {torch.__version__}"
    )


def today() -> str:
    return date.today().isoformat()


def printed(module: str, options: str, **environment: str) -> str:
    """What `python -m module` prints on stdout, with these variables set. Raises UserError where it fails."""
    command = [sys.executable, "-m", module, *shlex.split(options)]
    finished = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )
    if finished.returncode:
        sys.stderr.write(finished.stdout)
        raise UserError(f"python -m {module} {options}: ended with {finished.returncode}; see above")
    return finished.stdout


# Reading what benchmarks print

STEP_HEAD = re.compile(
    r"([\d,]+) examples, ([\d,]+) tokens, ([\d,]+) of them supervised, ([\d,]+) padded; (\w+), (\w+)"
)
STEP_ROW = re.compile(r"(trl|plain|ours)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+(\d+)%\s+([\d.]+)")
NEW_ROW = re.compile(
    r"^(mean|eos)\s+([\d.e-]+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+(\d+)%$", re.MULTILINE
)
NEW_ROW_FIGURES = ("lr", "end before", "end after", "all before", "all after", "ended")


def read_train_step(text: str) -> list[dict[str, Any]]:
    """The tables of `tests.benchmarks.train_step`, one for each run of it.

    A run that broke off before it had measured two ways compares nothing: it is left out, with a line.
    Raises UserError where no run has two.
    """
    tables: list[dict[str, Any]] = []
    for line in text.splitlines():
        if head := STEP_HEAD.match(line):
            examples, tokens, supervised, padded = (
                int(number.replace(",", "")) for number in head.groups()[:4]
            )
            tables.append({
                "base": head[5], "dtype": head[6], "examples": examples, "tokens": tokens,
                "supervised": supervised, "padded": padded, "ways": {},
            })  # fmt: skip
        elif tables and (row := STEP_ROW.match(line)):
            seconds, speed, peak, share, loss = map(float, row.groups()[1:])
            tables[-1]["ways"][row[1]] = {
                "seconds": seconds, "tokens a second": speed, "peak GB": peak, "of bound": share / 100,
                "loss": loss,
            }  # fmt: skip
    complete = [table for table in tables if len(table["ways"]) > 1]
    for table in tables:
        if table not in complete:
            say(f"left out: {table['base']}, {table['dtype']}: {len(table['ways'])} way(s) measured")
    if not complete:
        raise UserError("not what train_step prints, or no run of it that has measured two ways")
    return complete


def read_new_rows(text: str) -> list[dict[str, float | str]]:
    """The lines of the table of `tests.benchmarks.new_rows`, without repetitions. UserError for none."""
    lines: dict[tuple[str, ...], dict[str, float | str]] = {}
    for start, *numbers in NEW_ROW.findall(text):
        lines[start, *numbers] = {"start": start} | dict(
            zip(NEW_ROW_FIGURES, map(float, numbers), strict=True)
        )
    if not lines:
        raise UserError("not what new_rows prints: no line of its table")
    return sorted(lines.values(), key=lambda line: (line["start"] == "eos", line["lr"]))


def read_whole_step(text: str) -> dict[str, dict[str, float]]:
    """The table of `tests.benchmarks.whole_step`: the figures of each way."""
    rows = re.findall(r"^(plain|ours|ours, LoRA 16) +([\d.]+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    assert len(rows) == 3, text
    return {
        way: dict(zip(("seconds", "tokens a second", "peak GB"), map(float, figures), strict=True))
        for way, *figures in rows
    }


def read_generate(text: str) -> dict[str, Any]:
    """What `tests.benchmarks.generate` prints: two ways, a dialogue, and how many tokens are equal."""
    rows = re.findall(r"^(plain|ours) +([\d.]+) +(\d+)% +([\d.]+) +([\d.]+)", text, re.MULTILINE)
    turns = re.search(r"turn 1 ([\d.]+) s, turn 10 ([\d.]+) s .*\(([\d,]+) tokens", text)
    equal = re.search(r"(\d+) of (\d+) tokens equal", text)
    assert len(rows) == 2, text
    assert turns, text
    assert equal, text
    return {
        "ways": {
            name: {
                "alone": float(alone), "of bound": int(share) / 100, "of 8": float(of_8),
                "first": float(first),
            }
            for name, alone, share, of_8, first in rows
        },
        "turn 1": float(turns[1]),
        "turn 10": float(turns[2]),
        "tokens of turn 10": int(turns[3].replace(",", "")),
        "equal": [int(equal[1]), int(equal[2])],
    }  # fmt: skip


def read_plan(text: str) -> list[dict[str, Any]]:
    """The lines of the table of `tests.benchmarks.plan`, in GB."""
    rows = re.findall(r"^(\d+ M)\s+(\S.*?)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)$", text, re.MULTILINE)
    assert rows, text
    return [
        {"weights": size, "way": way, "planned": float(planned), "measured": float(measured)}
        for size, way, planned, measured, _ in rows
    ]


def read_card_check(text: str) -> dict[str, Any]:
    """What is kept of the card.json of `training.card_check`. Raises UserError for anything else."""
    try:
        content = json.loads(text)
        parts = [
            {key: part[key] for key in ("number", "title", "outcome", "reason", "seconds", "rows")}
            for part in content["parts"]
        ]
        return {"sizes": content["sizes"], "failures": content["failures"], "parts": parts}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"not a card.json of training.card_check: {error}") from None


def card_of(found: dict[str, Any]) -> str:
    """The machine of a card check: its card, its driver and torch, without the host's name."""
    rows = {row["what"]: row["value"] for part in found["parts"] for row in part["rows"]}
    names = [str(value) for what, value in rows.items() if re.fullmatch(r"card( \d+)?", what)]
    libraries = [
        f"{what} {rows[what]}" for what in ("driver", "torch") if rows.get(what) not in (None, "unknown")
    ]
    return ", ".join([*names, *libraries])


# The sections


def measure_labels(settings: Settings) -> dict[str, Any]:
    options = f"--data-path {SAMPLES} --input-model {settings.tiny_bloom} --rows 4000"
    text = printed("tests.benchmarks.encode", options)
    speeds = dict(re.findall(r"^ +(plainly|ours) +([\d,]+) rows a second", text, re.MULTILINE))
    found = re.search(r"ratio +([\d.]+) +\(([\d.]+) to ([\d.]+)", text)
    assert found, text
    return {
        "rows": supervised_by_both(load_tokenizer(settings.tiny_bloom)),
        "rows a second": {name: int(speed.replace(",", "")) for name, speed in speeds.items()},
        "ratio": [float(number) for number in found.groups()],
    }


def measure_train_step(settings: Settings) -> list[dict[str, Any]]:
    options = (
        f"--dtype float32 --data-path {SAMPLES} --input-model {settings.tiny_bloom} --rows {STEP_ROWS} "
        f"--steps {STEPS}"
    )
    return [
        table
        for base in BASES
        for table in read_train_step(printed("tests.benchmarks.train_step", f"{options} --base {base}"))
    ]


def derive_head(settings: Settings) -> dict[str, Any]:
    """FLOPs and the memory of logits, from shapes alone, for the rows of the section `train_step`."""
    tokenizer = load_tokenizer(settings.tiny_bloom)
    rows = [encode(each, tokenizer) for _, each in islice(read_conversations(SAMPLES), STEP_ROWS)]
    lengths = [len(row["input_ids"]) for row in rows]
    supervised = sum(label != NOT_SUPERVISED for row in rows for label in row["labels"])
    longest = max(lengths)
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    packed = Tokens(total=sum(lengths), supervised=supervised, pairs=pairs)
    # The padded way computes every logit, and scores of each token with all others.
    padded = Tokens(longest * len(rows), longest * len(rows), pairs=longest * longest * len(rows))
    bases = {}
    for name, config in BASES.items():
        products = matrix_products(empty_model(config, torch.float32, packed=True))
        of_slice = min(tokens_at_once(config.vocab_size), supervised)
        bases[name] = {
            "vocabulary": config.vocab_size,
            "hidden": config.hidden_size,
            "blocks": products.weights,
            "padded FLOPs": products.flops(padded),
            "packed FLOPs": products.flops(packed),
            "padded logits": padded.total * config.vocab_size * (2 * 4 + 8),
            "packed logits": of_slice * config.vocab_size * 4,
        }
    return {
        "tokens": packed.total, "supervised": supervised, "padded": padded.total, "bases": bases,
    }  # fmt: skip


def measure_whole_step(settings: Settings) -> dict[str, dict[str, Any]]:
    """Whole optimizer steps of a Bloom, with glibc as it is and with glibc keeping what was freed."""
    options = (
        f"--no-bf16 --data-path {SAMPLES} --input-model {settings.tiny_bloom} --rows {WHOLE_STEP_ROWS} "
        f"--deepspeed {ROOT / 'config/deepspeed_zero2_bf16_no_offload.json'}"
    )
    found = {}
    for memory, environment in (("given back", {}), ("kept", KEEPS_MEMORY)):
        found[memory] = read_whole_step(printed("tests.benchmarks.whole_step", options, **environment))
    return found


def measure_generate(settings: Settings) -> dict[str, Any]:
    """The speed of answers, the library's and ours, and the time to the first token of a dialogue's turns."""
    return read_generate(printed("tests.benchmarks.generate", "--way plain --way ours"))


def measure_plan(settings: Settings) -> list[dict[str, Any]]:
    return read_plan(printed("tests.benchmarks.plan", "--stage 2 --size '51 M' --batch-size 4"))


def measure_survival(settings: Settings) -> dict[str, Any]:
    which = "-k 'again_and_again or asked_to_stop'"
    text = printed("pytest", f"-q -s -p no:cacheprovider -m slow tests/run/test_survival.py {which}")
    kills = re.search(r"(\d+) kills, (\d+) of them in a save, in (\d+) steps", text)
    signals = re.search(r"(\d+) signals", text)
    assert kills, text
    assert signals, text
    return {
        "kills": int(kills[1]), "in a save": int(kills[2]), "signals": int(signals[1]),
        "steps": int(kills[3]),
    }  # fmt: skip


def measure_vocabulary(settings: Settings) -> dict[str, Any]:
    """Tokens that pieces save in held-out texts, and the loss per character with and without them."""
    tokenizers = {"tiny Bloom": settings.tiny_bloom}
    if settings.base:
        tokenizers[Path(settings.base).name] = settings.base
    tokenizers |= {Path(path).name: path for path in settings.tokenizers}
    savings = []
    for paths in ((SAMPLES, DIALOGUES), *((path,) for path in settings.corpora)):
        corpus = read_corpus(paths)
        for name, path in tokenizers.items():
            savings += saved_tokens(corpus.split(), name, path, ", ".join(Path(each).name for each in paths))
    options = f"--corpus {SAMPLES} --input-model {settings.tiny_bloom} --num-tokens 300"
    text = printed("tests.benchmarks.vocabulary", options)
    losses = re.findall(r"^(as it is|extended): ([\d.]+) nats .* after (\d+) steps", text, re.MULTILINE)
    assert len(losses) == 2, text
    return {
        "savings": savings,
        "losses": {name: float(loss) for name, loss, _ in losses},
        "steps": int(losses[0][2]),
    }


def saved_tokens(
    split: tuple[list[str], list[str]], name: str, path: str, corpus: str
) -> list[dict[str, Any]]:
    """A line for each number of pieces: the tokens of the held-out texts with them."""
    texts, held_out = split
    base = copy_for_text(load_base_tokenizer(path))
    found = []
    for pieces in (0, *PIECES):
        extended = copy_for_text(load_base_tokenizer(path))
        added = 0
        if pieces:
            candidates = learn_candidates(texts, base, CANDIDATES * pieces)
            saved = choose(candidates, texts, base, pieces)
            added = len(saved)
            extended.add_tokens(as_tokens(list(saved)))
        tokens = sum(len(one.ids) for one in extended.encode_batch_fast(held_out, add_special_tokens=False))
        found.append({
            "corpus": corpus, "tokenizer": name, "pieces": added, "tokens": tokens,
            "characters": sum(map(len, held_out)),
        })  # fmt: skip
    return found


def measure_raters(settings: Settings) -> list[dict[str, float]]:
    return [separated_models(questions) for questions in QUESTIONS]


def measure_evaluation(settings: Settings) -> list[dict[str, Any]]:
    """The figures of `evaluation.objective` for a random model, and for a real base where one is given."""
    models = {"random": settings.tiny_bloom}
    if settings.base:
        models[Path(settings.base).name] = settings.base
    found = []
    for name, path in models.items():
        output = settings.directory / f"objective-{name}"
        options = f"--model {path} --questions {QUESTIONS_FILE} --output {output} --max-new-tokens 64"
        if not (output / "result.json").exists():
            printed("evaluation.objective", options)
        result = json.loads((output / "result.json").read_text("utf-8"))
        found.append({"model": name} | {key: result[key] for key in ("asked", "chance", "unread", "ways")})
    return found


class Section(NamedTuple):
    """A section that is measured here: by what function, and which of the settings it takes."""

    measure: Callable[[Settings], Any]
    takes: tuple[str, ...] = ()


SECTIONS = {
    "alibi": Section(lambda settings: bias_errors()),
    "bf16": Section(lambda settings: logit_errors()),
    "attention": Section(lambda settings: attention_seconds()),
    "labels": Section(measure_labels),
    "head": Section(derive_head),
    "train_step": Section(measure_train_step),
    "whole_step": Section(measure_whole_step),
    "generate": Section(measure_generate),
    "plan": Section(measure_plan),
    "survival": Section(measure_survival),
    "vocabulary": Section(measure_vocabulary, takes=("base", "corpus", "tokenizer")),
    "raters": Section(measure_raters),
    "evaluation": Section(measure_evaluation, takes=("base",)),
}


class Added(NamedTuple):
    """A section that comes from a run elsewhere: how its file is read, and by what command it was made."""

    read: Callable[[str], Any]
    command: str


TRAIN_STEP = "python -m tests.benchmarks.train_step --data-path FILE --input-model DIRECTORY --base bloom"
NEW_ROWS = (
    "python -m tests.benchmarks.new_rows --input-model checkpoints/smollm2-135m --data-path FILE --rows 80 "
    "--held-out 16 --batch-size 2 --max-length 256 --max-new-tokens 64 --lr 1e-4 --lr 3e-4 --lr 1e-3"
)
ADDED = {
    "train_step_float32": Added(read_train_step, f"{TRAIN_STEP} --dtype float32 --steps 1"),
    "train_step_bf16": Added(read_train_step, TRAIN_STEP),
    "train_step_card": Added(read_train_step, f"{TRAIN_STEP} --rows 64"),
    "new_rows": Added(read_new_rows, NEW_ROWS),
    "card_check": Added(read_card_check, "python -m training.card_check --output-dir checkpoints/card"),
}


def command_of(name: str, settings: Settings | None = None) -> str:
    """The command that measures a section, with the names of the files that it takes beside the samples."""
    if name in ADDED:
        return ADDED[name].command
    section, command = SECTIONS[name], f"python -m tests.benchmarks.report --only {name}"
    if settings is None:
        return command
    given = {
        "base": filter(None, [settings.base]),
        "corpus": settings.corpora,
        "tokenizer": settings.tokenizers,
    }
    for option in section.takes:
        command += "".join(f" --{option} checkpoints/{Path(path).name}" for path in given[option])
    return command
