"""What docs/original.md says of this recipe's side is what the code has."""

import json
import re
import shlex
from dataclasses import fields

import pytest

from tests.conftest import ROOT
from training import trainer
from training.common.command_line import flag_of
from training.common.options import ADAPTER_LEARNING_RATE, Options
from training.consts import CONTEXT

PAGE = (ROOT / "docs" / "original.md").read_text("utf-8")


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its first two lines."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def our_default(flag: str) -> str:
    """The default of an option, as the page writes it."""
    field = next(each for each in fields(Options) if "group" in each.metadata and flag == own_flag(each))
    if field.metadata["required"]:
        return "required"
    resolved = getattr(Options(), field.name)
    return {None: "none", True: "on", False: "off"}.get(resolved, f"{resolved}")


def own_flag(field) -> str:
    return flag_of(field).split("/")[0]


def test_the_defaults_that_differ_are_ours() -> None:
    rows = table("Defaults that differ")
    assert {row[0] for row in rows} >= {"`--epochs`", "`--test-size`", "`--warmup-steps`", "`--save-steps`"}
    for flag, single, multi, ours in rows:
        assert our_default(flag.strip("`")) == ours, flag
        assert ours not in (single, multi) or single != multi, f"{flag} does not differ"


def test_the_defaults_that_are_the_same_are_ours() -> None:
    for flag, everywhere in table("Defaults that are the same"):
        assert our_default(flag.strip("`")) == everywhere, flag


def test_every_option_that_the_original_has_too_is_in_a_table() -> None:
    shown = {
        row[0].strip("`") for name in ("differ", "are the same") for row in table(f"Defaults that {name}")
    }
    ours = {own_flag(each) for each in fields(Options) if "group" in each.metadata}
    assert shown <= ours
    assert len(shown) == 16  # of 19: not --local-output-dir, --dbfs-output-dir and --local_rank


def test_the_adapters_defaults_are_ours() -> None:
    adapter = Options(lora_rank=16)
    rows = {row[0]: row[-1] for row in table("Adapters")}
    assert rows["learning rate"] == f"{ADAPTER_LEARNING_RATE:g}" == f"{adapter.lr:g}"
    assert rows["alpha"] == f"`--lora-alpha`: twice the rank, so {adapter.lora_alpha} at 16"
    assert rows["rank"].endswith(f": {our_default('--lora-rank')}, which is no adapter")
    assert rows["layers"] == f"`--lora-target`: `{adapter.lora_target}`, every linear layer but the head"
    assert rows["dropout"] == f"`--lora-dropout`: {adapter.lora_dropout:g}"


def test_the_deepspeed_file_differs_as_stated() -> None:
    ours = json.loads((ROOT / "config" / "deepspeed_zero2_bf16.json").read_text("utf-8"))
    rows = table("DeepSpeed's ZeRO-2 file")
    assert {row[0].strip("`") for row in rows} == {
        "scheduler", "fp16", "steps_per_print", "allgather_bucket_size", "reduce_bucket_size",
        "grad_accum_dtype",
    }  # fmt: skip
    for key, _, value in rows:
        found = {**ours, **ours["zero_optimization"], **ours["data_types"]}.get(key.strip("`"))
        text = f"{found:.0e}".replace("e+0", "e") if isinstance(found, float) else found
        assert value == (text or "not there"), key


def test_the_command_for_the_originals_defaults_parses() -> None:
    [command] = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    arguments = shlex.split(command.replace("\\\n", " "))
    words = arguments[arguments.index("training.trainer") + 1 :]
    options = Options(**trainer.main.make_context("trainer", words).params)
    for flag, single, _, _ in table("Defaults that differ"):
        name = flag.strip("`").removeprefix("--").replace("-", "_")
        if single != "none" and name not in ("data_path", "input_model"):
            assert f"{getattr(options, name):g}" == single, flag
    assert (options.warmup_shape, options.bf16) == ("log", True)


@pytest.mark.parametrize("text", [f"smaller of {CONTEXT:,} tokens", "--bf16 False", "50.5", "78.0"])
def test_the_page_states(text: str) -> None:
    """Figures that other tests hold: of --max-length, of switches, and of the summed rates."""
    assert text in PAGE
