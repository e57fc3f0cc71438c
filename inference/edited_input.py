"""An input that was edited after an interruption: the answers to rows that are as they were are kept."""

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inference.resumable import Journal, refusals
from training.common.console import say
from training.common.files import write_atomic
from training.text.conversation import Conversation

# The key of a journal's record for its input's fingerprint, and that of an answer for its `prompt_digest`.
INPUT, PROMPT = "--input", "prompt"


def prompt_digest(conversation: Conversation) -> str:
    """What an answer depends on of its row."""
    content = json.dumps(asdict(conversation))
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def keep_answers(output: Path, record: dict[str, Any], digests: Sequence[str]) -> None:
    """Make the journal of another input, if there is one for `output`, that of this input.

    record: as for `Journal`. digests: that of each row. Answers go to the rows that have their digest; the
    others are dropped, and counted. A journal is left as it is where it differs from `record` in more than
    the input, and where no answer can be kept.
    """
    path = Path(f"{output}.partial")
    begun = _record_in(path)
    if begun is None or begun == record or begun | {INPUT: record[INPUT]} != record:
        return
    before = Journal(output, begun)
    rows: defaultdict[str, deque[int]] = defaultdict(deque)
    for row, digest in enumerate(digests):
        rows[digest].append(row)
    kept = [
        answer | {"row": rows[answer[PROMPT]].popleft()}
        for _, answer in sorted(before.answers.items())
        if rows.get(answer.get(PROMPT, ""))
    ]
    if not kept:
        return
    seconds = before.seconds * len(kept) / len(before.answers)
    lines = (record, {"seconds": seconds, "answers": kept})
    with refusals(path):
        write_atomic(path, json.dumps(lines[0]) + "\n" + json.dumps(lines[1], ensure_ascii=False) + "\n")
    dropped = len(before.answers) - len(kept)
    say(
        f"the input has changed: {len(kept):,} answers are kept, of rows that are as they were"
        + (f"; {dropped:,} others are dropped" if dropped else ""),
        on_stderr=True,
    )


def _record_in(path: Path) -> dict[str, Any] | None:
    """The record that a journal begins with, or None where it does not begin with one."""
    with refusals(path):
        first = path.read_bytes().partition(b"\n")[0] if path.exists() else b""
    try:
        record = json.loads(first)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
