"""The page of `training.check --html`: what a check found, as one file that asks nothing of the network."""

from collections.abc import Iterable, Sequence
from html import escape
from string import Template
from typing import Any, NamedTuple

from training.data.audit import (
    counts_text,
    has_more,
    notes_of,
    place_text,
    quantile_name,
    rows_text,
    usable_count,
)

# The policy forbids scripts and whatever would be fetched, should any text ever get past `escape`.
PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root {
  color-scheme: light dark;
  --page: #ffffff; --card: #f4f5f7; --text: #1c2024; --faint: #5d666f; --line: #d9dde1;
  --bar: #4a7dc9; --mark: #c8ecd0; --mark-text: #0c3d1a; --good: #1a7f37; --bad: #b42318;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15181b; --card: #1e2226; --text: #e6e8ea; --faint: #9aa4ad; --line: #353b41;
    --bar: #6d9be0; --mark: #1d4a2b; --mark-text: #c9f2d3; --good: #56c271; --bad: #f47067;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 3rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
.verdict { padding: .75rem 1rem; background: var(--card); border-left: 4px solid var(--good); }
.verdict.bad { border-color: var(--bad); }
.verdict p { margin: .2rem 0; }
.faint, .place { color: var(--faint); }
.place { font-size: .875rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0; }
dt { color: var(--faint); }
dd { margin: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .1rem 0 .1rem 2rem; text-align: right; font-weight: normal; }
th:first-child { padding-left: 0; }
thead th { color: var(--faint); border-bottom: 1px solid var(--line); }
tbody th { text-align: left; }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: .2rem .75rem; align-items: center; }
.bars .label { text-align: right; color: var(--faint); font-variant-numeric: tabular-nums; }
.bars .value { display: flex; align-items: center; gap: .5rem; font-variant-numeric: tabular-nums; }
.bars .bar { height: 1rem; min-width: 1px; border-radius: 2px; background: var(--bar); }
ul { margin: 0; padding-left: 1.2rem; }
li { margin: .35rem 0; }
pre {
  margin: .75rem 0; padding: .75rem 1rem; background: var(--card); border-radius: 6px;
  font: .875rem/1.6 ui-monospace, monospace; white-space: pre-wrap;
}
mark { background: var(--mark); color: var(--mark-text); border-radius: 2px; }
</style>
</head>
<body>
<h1>$title</h1>
<div class="verdict$bad">$verdict</div>
$sections
</body>
</html>
""")

# The share of the width that the longest bar takes; its number stands beside it.
LONGEST_BAR = 75

# A text of `supervised_runs`: its parts, and whether each is supervised.
Example = Sequence[tuple[str, bool]]


class CheckedFile(NamedTuple):
    """A file, the summary of its findings, and some of its examples."""

    path: str
    summary: dict[str, Any]
    examples: Sequence[Example]


def check_page(files: Sequence[CheckedFile], verdict: Iterable[str], *, is_usable: bool) -> str:
    """The whole page: the verdict, then a section for each file."""
    return PAGE.substitute(
        title=escape("Check of " + ", ".join(file.path.rsplit("/", 1)[-1] for file in files)),
        bad="" if is_usable else " bad",
        verdict="".join(f"<p>{escape(line)}</p>" for line in verdict),
        sections="\n".join(map(_section, files)),
    )


def _section(file: CheckedFile) -> str:
    summary, kept = file.summary, file.summary["kept"]
    usable = usable_count(summary)
    facts = {
        "rows": f"{summary['rows']:,}, of which {usable:,} can be used",
        "in training": f"{kept['rows']:,} rows of {kept['tokens']:,} tokens, {kept['learnt']:,} of them "
        f"supervised, with --max-length {summary['max_length']}",
        "format": counts_text(summary["formats"]),
        "domain": counts_text({prefix or "none": count for prefix, count in summary["domains"].items()}),
    }
    if summary["remarks"]:
        facts["how it is read"] = "; ".join(summary["remarks"])
    parts = [
        f"<h2>{escape(file.path)}</h2>",
        "<dl>" + "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()) + "</dl>",
    ]
    if usable:
        parts += [
            "<h3>How long rows and answers are, in tokens</h3>",
            _quantiles({"a row": summary["quantiles"], "an answer": summary["answer_quantiles"]}),
            "<h3>Rows by their tokens</h3>",
            _bars(summary["histogram"], "to "),
            "<h3>Answers by their supervised tokens</h3>",
            _bars(summary["answer_histogram"], "to "),
            "<h3>Rows by their turns</h3>",
            _bars(summary["turns"]),
        ]
    problems = dict(summary["errors"])
    unusable = [
        (f"{reason}: ", noted, {line: problems.get(line, reason) for (line,) in noted["lines"]})
        for reason, noted in summary["unusable"].items()
    ]
    if unusable:
        parts += ["<h3>Rows that cannot be used</h3>", _found(file.path, unusable)]
    notes = [(text, noted, {}) for text, noted in notes_of(summary)]
    if notes:
        parts += ["<h3>What else was found</h3>", _found(file.path, notes)]
    if summary["bookkeeping"]:
        text = f"bookkeeping, not learnt: {counts_text(summary['bookkeeping'])}"
        parts.append(f'<p class="faint">{escape(text)}</p>')
    if file.examples:
        parts.append("<h3>Examples, the <mark>supervised tokens</mark> marked</h3>")
        parts += map(_example, file.examples)
    return "\n".join(parts)


def _quantiles(columns: dict[str, dict[str, int]]) -> str:
    """A table with a row for each quantile."""
    head = "".join(f"<th>{title}</th>" for title in columns)
    names = dict.fromkeys(percent for quantiles in columns.values() for percent in quantiles)
    body = "".join(
        f"<tr><th>{escape(quantile_name(percent))}</th>"
        + "".join(f"<td>{quantiles[percent]:,}</td>" for quantiles in columns.values())
        + "</tr>"
        for percent in names
    )
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _bars(histogram: dict[str, int], before: str = "") -> str:
    """A bar for each number that is not 0."""
    most = max(histogram.values(), default=0)
    bars = [
        f'<div class="label">{before}{int(name):,}</div><div class="value">'
        f'<div class="bar" style="width: {count / most * LONGEST_BAR:.1f}%"></div>{count:,}</div>'
        for name, count in histogram.items()
        if count
    ]
    return f'<div class="bars">{"".join(bars)}</div>'


def _found(path: str, found: Iterable[tuple[str, dict[str, Any], dict[int, str]]]) -> str:
    """A list of what was found: (what it is, how many rows and which, what is wrong with each line)."""
    entries = []
    for text, noted, problems in found:
        places = [_place(path, lines, text, problems) for lines in noted["lines"]]
        more = ["..."] if has_more(noted) else []
        where = "<br>".join([*places, *more])
        entries.append(f'<li>{escape(text)}{rows_text(noted["count"])}<div class="place">{where}</div></li>')
    return f"<ul>{''.join(entries)}</ul>"


def _place(path: str, lines: list[int], text: str, problems: dict[int, str]) -> str:
    place = place_text(path, lines)
    problem = problems.get(lines[0], "")
    return escape(place if problem in ("", text.removesuffix(": ")) else f"{place}: {problem}")


def _example(example: Example) -> str:
    texts = [
        f"<mark>{escape(text)}</mark>" if is_supervised else escape(text) for text, is_supervised in example
    ]
    return f"<pre>{''.join(texts)}</pre>"
