"""The rows of --eval-data-path: their names, and how many of them are trained on as well."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from training.common.errors import UserError
from training.common.options import Options
from training.data.examples import Examples, load_files
from training.data.sources import expand_path

# How many pairs of places a line about leakage names.
PAIRS_SHOWN = 3


def load_evaluation_files(options: Options, tokenizer: PreTrainedTokenizerFast) -> dict[str, Examples]:
    """The examples of each --eval-data-path by its name; says what is supervised, cut and dropped.

    Raises UserError for rows that cannot be used, as --on-bad-row says, and for a path that is given twice.
    """
    evaluated = {}
    for name, path in evaluation_names(options.eval_data_path).items():
        files = load_files(expand_path(path, options.cache_dir), options, tokenizer)
        evaluated[name] = Examples(files, range(sum(map(len, files))))
    return evaluated


def evaluation_names(paths: Sequence[str]) -> dict[str, str]:
    """The paths, by the names that their losses get: the file's own, without the suffix; a folder's; or what
    stands in a pattern beside its stars.

    Where files in several directories have one name, all names begin with as many directories as it takes:
    `a/test.jsonl` and `b/test.jsonl` are `a_test` and `b_test`. Raises UserError for a path given twice.
    """
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"--eval-data-path {path}: given twice")
    parts = [_plain_parts(path) for path in paths]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["_".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    names = [f"{each[-1]}_{number}" for number, each in enumerate(parts, start=1)]
    return dict(zip(names, paths, strict=True))


def _plain_parts(path: str) -> list[str]:
    """The directories and the name of a file, in characters that every service takes in a metric's name.

    Of a part of a pattern, that is what stands beside its stars and question marks; a part such as `*.jsonl`,
    of which nothing does, is left out.
    """
    *directories, name = [part for part in path.split("/") if part] or [path]
    file, mark, part_of_file = name.partition("#")
    parts = [*directories, PurePath(file.removesuffix(".gz")).stem + mark + part_of_file]
    return list(filter(None, map(_plain_part, parts))) or ["files"]


def _plain_part(part: str) -> str:
    plain = re.sub(r"[^\w-]+", "_", part)
    return plain.strip("_-") if "*" in part or "?" in part else plain or "_"


class Leakage(NamedTuple):
    """Rows to evaluate on whose whole prompt is that of a row that is trained on.

    rows: their numbers among the examples to evaluate on, (rows,). trained_on: for each, the number of the
    first example with its whole prompt among those to train on; where the whole row is trained on, of that
    row. is_whole: whether it is, all (rows,).
    """

    rows: np.ndarray
    trained_on: np.ndarray
    is_whole: np.ndarray


def leakage(evaluated: Examples, training: Examples) -> Leakage:
    """Which rows to evaluate on are trained on, or have the whole prompt of a row that is."""
    prompts, rows = _hashes(evaluated)
    trained_prompts, trained_rows = _hashes(training)
    same_prompt, same_row = _first(trained_prompts, prompts), _first(trained_rows, rows)
    found = np.flatnonzero((same_prompt >= 0) | (same_row >= 0))
    is_whole = same_row[found] >= 0
    return Leakage(found, np.where(is_whole, same_row[found], same_prompt[found]), is_whole)


def _hashes(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """The hash of each example's whole prompt, and that of the whole example, both (examples,)."""
    prompts = [file.prompts for file in examples.files]
    whole = np.concatenate([each.whole for each in prompts])
    rows = np.concatenate([each.states[each.ends - 1] for each in prompts])
    return whole[examples.indices], rows[examples.indices]


def _first(among: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each wanted value, the first place in `among` that has it, or -1, (wanted,)."""
    values, first = np.unique(among, return_index=True)
    place = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return np.where(values[place] == wanted, first[place], -1)


def leakage_lines(evaluated: Mapping[str, Examples], training: Examples) -> list[str]:
    """A line for each name: how many of its rows are trained on, or have the whole prompt of one that is."""
    return [_leakage_line(name, examples, training) for name, examples in evaluated.items()]


def _leakage_line(name: str, evaluated: Examples, training: Examples) -> str:
    found = leakage(evaluated, training)
    rows = f"evaluation {name}: {len(evaluated):,} rows"
    if not len(found.rows):
        return f"{rows}, none of them with the whole prompt of a row that is trained on"
    pairs = [
        f"{evaluated.place(row)} = {training.place(trained)}"
        for row, trained in zip(found.rows[:PAIRS_SHOWN], found.trained_on, strict=False)
    ]
    more = ", ..." if len(found.rows) > PAIRS_SHOWN else ""
    return (
        f"WARNING: {rows}, {len(found.rows):,} of them with the whole prompt of a row that is trained on, "
        f"{np.count_nonzero(found.is_whole):,} of these with its answer, too ({', '.join(pairs)}{more})"
    )
