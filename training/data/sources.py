"""What --data-path stands for: a folder or a pattern for its files, and anything else for itself."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from training.common.console import say
from training.common.errors import UserError
from training.common.modelscope import local_path
from training.common.option_texts import Source
from training.common.options import default_cache_dir
from training.data.file_kinds import has_rows_by_name
from training.data.pipes import copy_pipe, is_pipe

NAMES_SHOWN = 5

# Files of JSON in data sets from a hub that describe the set: `datasets` and ModelScope write them.
DESCRIPTIONS = ("dataset_infos.json", "configuration.json")

# How names of files begin that a folder does not show, and those that Excel makes of an open book.
HIDDEN = (".", "~$")


def expand_path(data_path: str, cache_dir: Path | None = None, *, says_others: bool = True) -> list[str]:
    """The files that `data_path` stands for, sorted; a file, a pipe or a name on the hub stands for itself.

    A folder stands for all files in it, at any depth and behind links, whose names end as those of a kind
    that is read; the others are said, unless `says_others` is False. A pattern stands for the files and
    folders that it matches. A pipe is copied into `cache_dir`, so that it can be read several times. A name
    on ModelScope stands for the folder that it is downloaded to. Raises UserError where there is nothing to
    read.
    """
    if os.path.isdir(folder := local_path(data_path, "dataset")):
        return _files_in(folder, says_others)
    if not os.path.exists(data_path) and glob.has_magic(data_path):
        found = sorted(path for path in glob.glob(data_path, recursive=True))
        files = [path for path in found if not os.path.isdir(path)]
        if "**" not in data_path:  # which matches what is in its folders as well
            folders = [path for path in found if os.path.isdir(path)]
            files = sorted([*files, *(file for folder in folders for file in _files_in(folder, says_others))])
        if not files:
            raise UserError(f"{data_path}: no file matches this pattern")
        return files
    if is_pipe(data_path):
        copy_pipe(data_path, cache_dir or default_cache_dir())
    return [data_path]


def expand_sources(sources: Sequence[Source], cache_dir: Path | None = None) -> list[Source]:
    """The sources file by file: each file of a folder or of a pattern has the weight of all."""
    return [Source(file, source.weight) for source in sources for file in expand_path(source.path, cache_dir)]


def files_without_weights(sources: Sequence[Source]) -> list[str]:
    """The files of the sources, for a command that takes each row once, whatever its weight; it says so."""
    for source in sources:
        if source.weight != 1:
            say(
                f"{source.path}: weight {source.weight:g} counts in training only; here each row is "
                "taken once",
                on_stderr=True,
            )
    return [source.path for source in expand_sources(sources)]


def _files_in(folder: str, says_others: bool) -> list[str]:
    files, others, entered = [], [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        # A link may lead to a folder that is read already, such as one around itself.
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(HIDDEN):
                has_rows = has_rows_by_name(name) and name not in DESCRIPTIONS
                (files if has_rows else others).append(os.path.join(parent, name))
    if others and says_others:
        shown = ", ".join(os.path.relpath(path, folder) for path in sorted(others)[:NAMES_SHOWN])
        more = ", ..." if len(others) > NAMES_SHOWN else ""
        say(f"{folder}: not read, by their names: {len(others):,} files ({shown}{more})", on_stderr=True)
    if not files:
        raise UserError(f"{folder}: a folder without a file of rows (.jsonl, .json, .csv, .xlsx, ...)")
    return sorted(files)
