"""The training and the held-out examples of a run: chosen rows of its encoded files."""

import hashlib
from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
from torch.utils.data import ConcatDataset, Subset
from transformers import PreTrainedTokenizerFast

from training.common.console import say
from training.common.errors import UserError
from training.common.options import Options
from training.data.audit import refuse_unusable, short_form
from training.data.encoded import EncodedFile, RowOptions, load_encoded
from training.data.groups import Prompts, groups
from training.data.sources import expand_sources
from training.data.split import Split, split

# Which rows are on one side of the split.
Together = Literal["first prompts", "whole prompts"]


class Examples(Subset):
    """Examples chosen from several encoded files, by numbers that count on from file to file.

    lengths: the tokens of each example, (examples,).
    """

    dataset: ConcatDataset
    indices: np.ndarray

    def __init__(self, files: Sequence[EncodedFile], chosen: Sequence[int]) -> None:
        numbers = np.asarray(chosen, dtype=np.int64)
        super().__init__(ConcatDataset(files), cast(Sequence[int], numbers))
        self.files = files
        self.lengths = np.concatenate([file.lengths for file in files])[self.indices]

    @property
    def fingerprint(self) -> str:
        """A hash of the files' content, of which rows were chosen, and of how long each is."""
        content = hashlib.blake2b(digest_size=16)
        for file in self.files:
            content.update(file.data_fingerprint.encode())
        content.update(self.indices.tobytes() + self.lengths.tobytes())
        return content.hexdigest()

    def place(self, index: int) -> str:
        """Where the row of an example stands, as `FILE:LINE`."""
        ends = self.dataset.cumulative_sizes
        file = int(np.searchsorted(ends, self.indices[index], side="right"))
        start = ends[file - 1] if file else 0
        encoded = self.files[file]
        return f"{encoded.data_path}:{encoded.rows['line'][self.indices[index] - start]}"


def load_files(
    paths: Sequence[str], options: Options, tokenizer: PreTrainedTokenizerFast
) -> list[EncodedFile]:
    """The encoded files at `paths`; says what is supervised, cut and dropped.

    Raises UserError for rows that cannot be used, as --on-bad-row says.
    """
    row_options = RowOptions(options.learn, options.columns)
    files = [
        load_encoded(path, tokenizer, options.max_length, options.cache_dir, row_options) for path in paths
    ]
    refuse_unusable(paths, [file.summary for file in files], options.on_bad_row)
    for path, file in zip(paths, files, strict=True):
        for line in short_form(path, file.summary):
            say(line)
    return files


def build_datasets(
    options: Options, tokenizer: PreTrainedTokenizerFast, together: Together = "whole prompts"
) -> tuple[Examples, Examples]:
    """The training and the held-out examples; says what is supervised, cut, dropped, and held out.

    together: which rows are on one side of the split. Those with the same first prompt were so in runs of
    earlier versions; now it is what `training.data.groups` draws.
    Raises UserError for rows that cannot be used, as --on-bad-row says, and where no row is left to train on.
    """
    sources = expand_sources(options.data_path, options.cache_dir)
    files = load_files([source.path for source in sources], options, tokenizer)
    weights = [source.weight for source in sources]
    if together == "first prompts":
        group_of = [file.rows["first"] for file in files]
    else:
        ends = np.cumsum([len(file) for file in files])[:-1]
        group_of = np.split(groups(Prompts.together([file.prompts for file in files])), ends)
    chosen = split(group_of, weights, options.test_size, options.seed)
    if not chosen.train:
        raise UserError(
            f"no rows to train on: the weights of --data-path leave none of {sum(map(len, files)):,} rows; "
            "give larger weights, or more rows"
        )
    for source, file, count in zip(sources, files, chosen.rows_per_epoch, strict=True):
        if source.weight != 1:
            say(f"{source.path}: weight {source.weight:g}: {count:,} rows, of {len(file):,}")
    for line in _split_lines(chosen, options.test_size):
        say(line)
    return Examples(files, chosen.train), Examples(files, chosen.held_out)


def _split_lines(chosen: Split, test_size: int | float) -> list[str]:
    """What became of the rows: each is trained on, held out, or left out."""
    held_out, trained = len(chosen.held_out), len(np.unique(chosen.train))
    lines = [f"{len(chosen.train):,} rows to train on, {held_out:,} held out"]
    if chosen.left_out_count or trained != len(chosen.train):
        lines.append(
            f"of {trained + held_out + chosen.left_out_count:,} rows, {trained:,} are trained on, "
            f"{held_out:,} held out, and {chosen.left_out_count:,} left out by a weight below 1"
        )
    if chosen.wanted_count != chosen.asked_count:
        lines.append(
            f"WARNING: --test-size {test_size} would leave none of the rows to train on; a tenth of them is "
            f"held out instead, {chosen.wanted_count:,} rows"
        )
    if chosen.moved_count:
        lines.append(
            f"{chosen.moved_count:,} rows changed sides, so that rows with one prompt, and dialogues that go "
            "on from one another, are on the same side"
        )
    if chosen.wanted_count and chosen.bound_count:
        lines.append(
            f"{chosen.bound_count:,} rows are trained on whatever --test-size says: several dialogues begin "
            "with them, or with their prompt"
        )
    if held_out < chosen.wanted_count:
        rest = trained - chosen.bound_count
        reason = (
            f"{rest:,} go together with more rows than there was room for" if rest else "there are no others"
        )
        lines.append(f"WARNING: {held_out:,} rows are held out, not {chosen.wanted_count:,}: {reason}")
    return lines
