"""The table of options in docs/training.md and docs/zh/training.md, made of the dataclass of the options.

    python -m tests.options_table

writes both tables anew. Flags, values and defaults come from `training.common.options`, and so does the
English text, which is the option's help. What the Chinese page says of an option stays as it stands there; an
option that is new there gets the English text, to be translated by hand.
"""

import dataclasses
import re
import typing
from pathlib import Path

from training.common.command_line import flag_of
from training.common.options import Options

ROOT = Path(__file__).parents[1]
ENGLISH = ROOT / "docs" / "training.md"
CHINESE = ROOT / "docs" / "zh" / "training.md"
BEGIN, END = "<!-- begin: options -->\n\n", "\n\n<!-- end: options -->"

HEADS = {
    ENGLISH: ("option", "value", "default", "meaning"),
    CHINESE: ("选项", "取值", "默认值", "含义"),
}
GROUPS = {
    "Data": "数据",
    "Model": "模型",
    "Adapter, instead of all weights": "适配器（代替全部权重）",
    "Optimisation": "优化",
    "Memory and machine": "内存与机器",
    "Progress": "进度",
}
WORDS = {
    "required": "必填",
    "none": "无",
    "on": "开",
    "off": "关",
    "switch": "开关",
    "text": "文本",
    "path": "路径",
    "whole number": "整数",
    "number": "数",
}


class Line(typing.NamedTuple):
    """One option, as the English table has it."""

    group: str
    flag: str
    value: str
    default: str
    meaning: str


def lines() -> list[Line]:
    """All options that people type, in their order."""
    kinds = typing.get_type_hints(Options)
    declared = [field for field in dataclasses.fields(Options) if "group" in field.metadata]
    return [
        Line(
            field.metadata["group"],
            flag_of(field),
            _value_of(field, kinds[field.name]),
            _default_of(field),
            field.metadata["help"],
        )
        for field in declared
        if field.name != "local_rank"  # of DeepSpeed's launcher
    ]


def _value_of(field: dataclasses.Field, kind: typing.Any) -> str:
    """What follows the flag: a word for a type, or the texts that are allowed."""
    if field.metadata["metavar"]:
        return f"`{field.metadata['metavar']}`"
    if field.metadata["multiple"]:
        kind = typing.get_args(kind)[0]
    kinds = [part for part in typing.get_args(kind) if part is not type(None)]
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in kinds)
    only = kinds[0] if kinds else kind
    if only is str and (field.metadata["is_path"] or field.metadata["is_model"]):
        return "path"
    return {bool: "switch", int: "whole number", float: "number", Path: "path", str: "text"}[only]


def _default_of(field: dataclasses.Field) -> str:
    if field.metadata["required"]:
        return "required"
    if field.metadata["shown_default"]:
        return field.metadata["shown_default"]
    if field.default is None or field.default == ():
        return "none"
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    if isinstance(field.default, tuple):
        return ", ".join(f"`{part}`" for part in field.default)
    return f"`{field.default}`" if isinstance(field.default, str) else f"{field.default:g}"


def table(page: Path) -> str:
    """The table as it should stand in a page."""
    before = cells_by_flag(page)
    rows = [HEADS[page], ("---",) * 4]
    group = ""
    for line in lines():
        shown = line if page == ENGLISH else _in_chinese(line, before)
        if line.group != group:
            rows.append((f"**{shown.group}**", "", "", ""))
            group = line.group
        rows.append((f"`{shown.flag}`", *(cell.replace("|", "\\|") for cell in shown[2:])))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows).replace("|  |  |  |", "| | | |")


def _in_chinese(line: Line, before: dict[str, tuple[str, ...]]) -> Line:
    """The line with the words of the page for its meaning, and for a default that is a sentence."""
    _, said, meaning = before.get(line.flag, ("", line.default, line.meaning))
    is_fixed = line.default in WORDS or re.fullmatch(r"`.*`|[\d.e-]+", line.default)
    return Line(
        GROUPS[line.group],
        line.flag,
        WORDS.get(line.value, line.value.replace("`, `", "`、`")),
        WORDS.get(line.default, line.default) if is_fixed else said,
        meaning,
    )


def cells_by_flag(page: Path) -> dict[str, tuple[str, ...]]:
    """The cells of a page's table beside the flags in its first column: value, default, meaning."""
    text = page.read_text("utf-8")
    text = text[text.index(BEGIN) : text.index(END)]
    found = re.findall(r"^\| `(--[^`]+)` \| (.*) \|$", text, re.MULTILINE)
    return {flag: tuple(cell.replace("\\|", "|") for cell in re.split(r" \| ", rest)) for flag, rest in found}


def rewritten(page: Path) -> str:
    """The page with the table as it should be."""
    text = page.read_text("utf-8")
    return text[: text.index(BEGIN)] + BEGIN + table(page) + text[text.index(END) :]


if __name__ == "__main__":
    for page in (ENGLISH, CHINESE):
        page.write_text(rewritten(page), "utf-8")
