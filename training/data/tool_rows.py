"""Whether the data has tools, which is known before anything is encoded: the tokenizer depends on it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from training.common.console import say
from training.common.options import Options
from training.consts import TOOL
from training.data.cache import make_once
from training.data.encoded import RowOptions, encoding_code
from training.data.raw_row import RawRow
from training.data.reader import fingerprint, parse, read_raw_rows
from training.data.sources import expand_path
from training.text.conversation import read_row

# Without one of these, the bytes of a row have no key "tools": JSON may write any letter as \u00... .
MAY_BE_TOOLS = (b'"tools"', b"\\u00")


def data_has_tools(options: Options) -> bool:
    """Whether a row to train or to evaluate on has tools; says which file is the first with one.

    The first rank of each node looks, and the others wait for what it writes into the cache. Raises UserError
    for a file that cannot be read.
    """
    row_options = RowOptions(options.learn, options.columns)
    for data_path in [*(source.path for source in options.data_path), *options.eval_data_path]:
        for path in expand_path(data_path, options.cache_dir, says_others=False):
            if _file_has_tools(path, options.cache_dir, row_options):
                say(f"{path}: rows with tools; the model has a fifth control token, {TOOL}")
                return True
    return False


def _file_has_tools(path: str, cache_dir: Path, row_options: RowOptions) -> bool:
    code = (file.read_text(encoding="utf-8") for file in encoding_code())
    depends_on = ["tools", fingerprint(path), *map(str, row_options), *code]
    key = hashlib.blake2b("\0".join(depends_on).encode(), digest_size=16).hexdigest()

    def look(directory: Path) -> None:
        found = has_tools(path, row_options)
        (directory / "has_tools.json").write_text(json.dumps(found), encoding="utf-8")

    return json.loads((make_once(cache_dir / key, look) / "has_tools.json").read_text(encoding="utf-8"))


def has_tools(path: str, row_options: RowOptions) -> bool:
    """Whether a row of a file that can be learnt from has tools: it is read up to the first such row."""
    return any(_has_tools(raw, row_options) for raw in read_raw_rows(path))


def _has_tools(raw: RawRow, row_options: RowOptions) -> bool:
    content: Any = raw.content
    if isinstance(content, bytes) and not any(sign in content for sign in MAY_BE_TOOLS):
        return False
    if isinstance(content, dict) and "tools" not in content:
        return False
    try:
        return read_row(parse(raw), row_options.columns).to_learn(row_options.learn).has_tools
    except ValueError:  # said, or dropped and counted, when the rows are encoded
        return False
