"""--columns: which column of a row holds which part of a conversation, for all rows of the command."""

import re

# The parts of a conversation that a column may hold: first those of a question, in the order in which they
# are asked.
ASKED = ("instruction", "question", "input")
PARTS = (*ASKED, "answer", "system", "history")

# What has a meaning in the option's text, and stands for itself behind a backslash.
ESCAPED = re.compile(r"([\\,=])")


class RowColumns(dict[str, str]):
    """The name of the column for each part; its text is that of the option."""

    def __str__(self) -> str:
        escaped = {part: ESCAPED.sub(r"\\\1", name) for part, name in self.items()}
        return ",".join(f"{part}={name}" for part, name in escaped.items())


def parse_columns(text: str) -> RowColumns:
    """`question=问题,answer=答案`; a comma, an equals sign or a backslash in a name follows a backslash.

    Raises ValueError for a part that there is not, for a part or a column that is named twice, and where no
    column holds what the human says.
    """
    columns = RowColumns()
    for entry in re.findall(r"(?:\\.|[^,\\])+", text):
        part, equals, name = entry.partition("=")
        part, name = part.strip(), re.sub(r"\\(.)", r"\1", name.strip())
        if part not in PARTS or not equals or not name:
            raise ValueError(f"{entry}: not PART=COLUMN, the part being one of {', '.join(PARTS)}")
        if part in columns:
            raise ValueError(f"{part} stands there twice")
        if name in columns.values():
            raise ValueError(f"the column {name} stands there twice; a column holds one part")
        columns[part] = name
    if not columns.keys() & set(ASKED):
        raise ValueError(f"{text}: no column for the question")
    return columns
