"""How many tokens a model can read, and how long the rows of a run may be for it."""

from transformers import PretrainedConfig

from training.common.console import say
from training.common.errors import UserError
from training.common.hub import is_adapter
from training.consts import CONTEXT
from training.model.bloom import is_bloom
from training.model.load import read_config

# The names under which configurations have that number.
LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len")


def context_limit(config: PretrainedConfig) -> int | None:
    """The most tokens that a model of this configuration can read, or None where nothing limits them.

    GPT-2 has no embedding for a later position, and a Llama was not made for it. A Bloom, by ALiBi, has no
    limit.
    """
    text_config = config.get_text_config()
    return next((size for name in LIMITS if (size := getattr(text_config, name, None))), None)


def note_context(config: PretrainedConfig, longest: int = 0) -> None:
    """Write into a Bloom's configuration the tokens that it can read.

    Bloom itself limits no length; servers and our chat take this as the context length. longest: the tokens
    of the longest row in training, which it can read at least.
    """
    if is_bloom(config):
        config.seq_length = max(getattr(config, "seq_length", CONTEXT), longest)


def longest_row(
    input_model: str, wanted: int | None, *, is_given: bool = True, on_stderr: bool = False
) -> int:
    """The tokens of the longest row in training: those that are wanted, or by default CONTEXT of them.

    Where the model at `input_model` can read fewer, the default is that, which a line says, on stderr if
    `on_stderr`; more that are wanted raise UserError, unless they were not given but kept from the record of
    an earlier version's run. An adapter has no configuration that could be asked.
    """
    limit = None if is_adapter(input_model) else context_limit(read_config(input_model))
    if limit is None or limit >= (wanted or CONTEXT):
        return wanted or CONTEXT
    if wanted and is_given:
        raise UserError(
            f"--max-length {wanted}: {input_model} can read {limit:,} tokens, as its configuration says; "
            "give no more, or leave the option out"
        )
    say(f"--max-length is {limit:,}: more {input_model} cannot read", on_stderr=on_stderr)
    return limit
