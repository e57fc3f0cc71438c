"""Run the commands of the README in their order, as a reader types them, on the demo's tiny model.

    bash scripts/walk_readme.sh

They run in a copy of the repository, which is removed at the end. The 7B's name is replaced by that of the
tiny model, eight cards by two processes; every block has to end with status 0, and a block of text that
follows one has to be in what that has printed. SPECIAL are the blocks that are not run as they stand.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from openai import OpenAI

from tests.conftest import ROOT
from tests.launching import Running, environment, free_port, kill
from tests.pages import README, text_of

TINY = "checkpoints/tiny-bloom"
REPLACED = {"bigscience/bloomz-7b1-mt": TINY, "--num_gpus=8": "--num_gpus=2"}

# What a reader types at a prompt of a command.
TYPED = "你是谁\n"

NOT_COPIED = (".git", ".venv*", "checkpoints", "__pycache__", ".*_cache", ".hypothesis")


class Special(NamedTuple):
    """A block that is not run as it stands."""

    shows: str  # what only this block has
    reason: str
    instead: str | None = None  # what is run in its place
    asks: Callable[[str], str] | None = None  # of a server in the background: its address -> its answer


def read_page(address: str) -> str:
    with urllib.request.urlopen(address, timeout=60) as response:
        return response.read().decode()


def ask_server(address: str) -> str:
    client = OpenAI(base_url=f"{address}/v1", api_key="none", timeout=300)
    answer = client.chat.completions.create(
        model="checkpoints/demo/model",
        messages=[{"role": "user", "content": "你是谁"}],
        temperature=0,
        frequency_penalty=0,
    )
    return answer.choices[0].message.content or ""


SPECIAL = (
    Special(
        "hf download",
        "The weights of a 7B are 14 GB from the network; the tiny model stands in for them.",
        instead=f"cp -r {TINY} checkpoints/yayi-7b",
    ),
    Special(
        "python -m inference.web",
        "The page is served until it is stopped: it runs in the background on a free port, and is fetched.",
        asks=read_page,
    ),
    Special(
        "transformers serve",
        "The server runs until it is stopped: it runs in the background on a free port, and is asked.",
        asks=ask_server,
    ),
)


def steps(text: str) -> list[tuple[str, str]]:
    """The page's blocks of commands, each with the block of text that follows it, or ""."""
    found = re.findall(r"^```(bash|text)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [
        (
            block,
            found[number + 1][1] if found[number + 1 : number + 2] and found[number + 1][0] == "text" else "",
        )
        for number, (kind, block) in enumerate(found)
        if kind == "bash"
    ]


def special(block: str) -> Special | None:
    return next((each for each in SPECIAL if each.shows in block), None)


def run_block(block: str, directory: Path) -> str:
    """What a block prints. Raises CalledProcessError unless it ends with status 0."""
    command = ["bash", "-euo", "pipefail", "-c", block]
    printed = []
    with tempfile.TemporaryFile("w+") as typed:  # a block may end without reading what is typed
        typed.write(TYPED)
        typed.seek(0)
        with subprocess.Popen(
            command, cwd=directory, env=environment(), stdin=typed, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        ) as process:  # fmt: skip
            for line in process.stdout:
                print(line, end="", flush=True)
                printed.append(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return "".join(printed)


def serve(block: str, directory: Path, asks: Callable[[str], str]) -> str:
    """Start a block whose last command serves, and return the answer that it gives when it is asked."""
    port = free_port()
    script = f"cd {directory}\n{block.rstrip()} --port {port}\n"
    running = Running("bash", "-euo", "pipefail", "-c", script)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            if running.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(address, timeout=5)
            except urllib.error.HTTPError:
                break  # it answers, if not at this path
            except OSError:
                time.sleep(1)
            else:
                break
        assert running.process.poll() is None, running.output
        return asks(address)
    finally:
        kill(running.family())


def main() -> None:
    """Run all blocks; the exit status is 1 where one fails."""
    carried = ""  # what lasts in a reader's shell
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="readme-") as name:
        directory = Path(name) / "YaYi"
        shutil.copytree(ROOT, directory, ignore=shutil.ignore_patterns(*NOT_COPIED))
        (directory / ".venv").symlink_to((ROOT / ".venv").resolve())
        for number, (shown, expected) in enumerate(steps(text_of(README.english)), start=1):
            block = shown
            for what, instead in REPLACED.items():
                block = block.replace(what, instead)
            how = special(block)
            print(f"\n== {number}: {shown.strip()}", flush=True)
            if how:
                print(f"== {how.reason}", flush=True)
            started = time.monotonic()
            if how and how.asks:
                printed = serve(carried + block, directory, how.asks)
                assert printed.strip(), "no answer"
                print(printed if len(printed) < 1000 else f"{len(printed):,} characters")
            else:
                printed = run_block(carried + (how.instead if how else block), directory)
            missing = [line for line in expected.splitlines() if line not in printed.splitlines()]
            if missing:
                sys.exit(f"error: the README shows what block {number} has not printed: {missing}")
            carried += "".join(
                f"{line}\n" for line in block.splitlines() if line.startswith(("source ", "export "))
            )
            print(f"== {time.monotonic() - started:.0f} s", flush=True)
    print(f"\n== every block of the README ran, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    os.environ.pop("VIRTUAL_ENV", None)
    main()
