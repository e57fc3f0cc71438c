"""The rows of a data set on the hub: NAME, NAME#CONFIG or NAME#CONFIG/SPLIT."""

import re
from typing import Any

from training.common.errors import UserError, first_line
from training.common.hub import check_on_hub

# OWNER/NAME, then the configuration and the split.
HUB_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:#([^/#]+)(?:/([^/#]+))?)?")

# What is read without a split in the name.
USUAL_SPLIT = "train"


def load_hub_rows(data_path: str) -> Any:
    """The rows as an object of the datasets library.

    Raises UserError for a data set that cannot be read, and with what there is where one has to be chosen.
    """
    match = HUB_NAME.fullmatch(data_path)
    assert match, "the caller has matched it before"
    name, config, split = match.groups()
    check_on_hub(name, "dataset")
    from datasets.exceptions import DatasetsError  # slow to import, and only needed here

    try:
        return _load(name, config, split)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise UserError(_problem(data_path, error)) from None


def _load(name: str, config: str | None, split: str | None) -> Any:
    import datasets

    chosen = [config] if config else []
    try:
        return datasets.load_dataset(name, *chosen, split=split or USUAL_SPLIT)
    except ValueError as error:
        only_split = _choose(name, config, split, error)
    return datasets.load_dataset(name, *chosen, split=only_split)


def _choose(name: str, config: str | None, split: str | None, error: ValueError) -> str:
    """The only split of a data set that has no "train".

    error: why it could not be loaded as it was named. Raises UserError with the configurations or splits to
    choose from, and `error` itself where neither is at fault.
    """
    import datasets

    configs = datasets.get_dataset_config_names(name)
    has_default = datasets.get_dataset_default_config_name(name) is not None
    if config not in configs and (config or not has_default):
        raise UserError(_to_choose(name, "configuration", config, configs, f"{name}#"))
    splits = [str(one) for one in datasets.get_dataset_split_names(name, config)]
    if split is None and len(splits) == 1:
        return splits[0]
    if (split or USUAL_SPLIT) not in splits:
        in_config = config or datasets.get_dataset_default_config_name(name)
        raise UserError(_to_choose(name, "split", split or USUAL_SPLIT, splits, f"{name}#{in_config}/"))
    raise error


def _to_choose(name: str, what: str, wanted: str | None, there: list[str], beginning: str) -> str:
    problem = f"no {what} {wanted}" if wanted else f"a {what} has to be chosen"
    return f"{name}: {problem}; there are {', '.join(there)}; name one, as in {beginning}{there[0]}"


def _problem(data_path: str, error: Exception) -> str:
    """One line on why a data set cannot be read, and what helps."""
    text = first_line(error)
    if "scripts are no longer supported" in text:
        return (
            f"{data_path}: made by a script ({text.rpartition(' ')[2]}), which the datasets library does not "
            "run; take a version of it in Parquet or JSON, or download its files and give those"
        )
    if "gated" in text:
        return f"{data_path}: a gated data set; ask for access on its page, and log in by `hf auth login`"
    if isinstance(error.__cause__, Exception):  # the library's own text then says only where it was
        text = " ".join(str(error.__cause__).split())
    remedy = ""
    if "column" in text:
        remedy = (
            f"; its files differ in their columns: `hf download {data_path.partition('#')[0]} --repo-type "
        )
        remedy += "dataset --local-dir FOLDER`, and --data-path FOLDER reads each file by itself"
    return f"{data_path}: the hub's data set cannot be read ({text}){remedy}"
