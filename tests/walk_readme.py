"""How the commands of the README are run, as a reader types them, on the demo's tiny model.

They run in a copy of the repository. The 7B's name is replaced by that of the tiny model, eight cards by two
processes, and the five epochs of the adapter by one, from which a random model learns as little. Every block
has to end with status 0, and a block of text that follows one has to be in what that has printed. SPECIAL are
the blocks that are not run as they stand.
"""

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

TINY = "checkpoints/tiny-bloom"
REPLACED = {
    "bigscience/bloomz-7b1-mt": TINY,
    "--num_gpus=8": "--num_gpus=2",
    "--epochs 5": "--epochs 1",
}

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


class Reader:
    """Someone who follows the page in a copy of the repository."""

    def __init__(self, directory: Path) -> None:
        """directory: where the copy is made; it must not exist."""
        self.directory = directory
        self.carried = ""  # what lasts in the reader's shell
        shutil.copytree(ROOT, directory, ignore=shutil.ignore_patterns(*NOT_COPIED))
        (directory / ".venv").symlink_to(Path(sys.prefix).resolve())

    def follow(self, block: str) -> str:
        """Run a block of the page, and return what it prints, or what its server answers."""
        for what, instead in REPLACED.items():
            block = block.replace(what, instead)
        how = special(block)
        if how:
            print(how.reason)
        if how and how.asks:
            printed = serve(self.carried + block, self.directory, how.asks)
            assert printed.strip(), "no answer"
            print(printed if len(printed) < 1000 else f"{len(printed):,} characters")
        else:
            printed = run_block(
                self.carried + (how.instead if how and how.instead else block), self.directory
            )
        self.carried += "".join(
            f"{line}\n" for line in block.splitlines() if line.startswith(("source ", "export "))
        )
        return printed
