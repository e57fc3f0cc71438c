"""Whether the models of a configuration can take packed batches, found out by trying a small copy.

The copy keeps what the configuration says about the computation: multipliers, windows, biases, norms, rotary
embeddings. Two documents go through it, packed, and padded through the library's class with the same weights.
Where the loss or a gradient differs, models of this configuration take padded batches.
"""

import copy
import functools
import json
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

from training.common.errors import first_line
from training.consts import NOT_SUPERVISED
from training.model.bloom import is_bloom
from training.model.packed import PACKED_ATTENTION, CannotPack, library_class, packed_class

# Tokens of the trial's longer document, at most, and of the shorter one, which is padded for the library.
LONGEST_TRIED, SHORTER = 300, 5

# A copy with more weights is not tried: the configuration has other names for its sizes than SMALL.
MOST_WEIGHTS = 2**25

# The sizes of the copy that have nothing to do with attention; `_shrunken` sets the others.
SMALL = {"vocab_size": 64, "intermediate_size": 32, "moe_intermediate_size": 32, "max_window_layers": 0}

# What is no part of the computation, and may name tokens that the copy does not have.
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

# The copy's matrices are this many times as large as the library makes them, so that logits are of a size at
# which a limit on them has an effect.
WEIGHT_FACTOR = 20

# In float64, differences are below this, in units of the loss or of a gradient's largest entry. (Some layers
# compute in float32 whatever their input is.)
TOLERANCE = 1e-5

# The attributes that say how many tokens a token sees.
WINDOWS = ("sliding_window", "attention_chunk_size")


def why_padded(config: PretrainedConfig, longest_row: int) -> str | None:
    """Why models of this configuration take padded batches, or None where they can take packed ones.

    longest_row: the most tokens of a row. The answer does not depend on the weights.
    """
    if is_bloom(config):
        return None
    for name in WINDOWS:
        window = getattr(config, name, None)
        if isinstance(window, int) and window < longest_row:
            return f"{name} is {window:,}, and rows have up to {longest_row:,} tokens"
    try:
        shrunken = _shrunken(copy.deepcopy(config))
    except AttributeError as error:
        return f"it has other sizes than a decoder with attention: {first_line(error)}"
    values = json.dumps(shrunken.to_dict(), sort_keys=True, default=str)
    return _try(type(config), values, min(longest_row, LONGEST_TRIED))


@functools.cache
def _try(config_class: type[PretrainedConfig], values: str, longest: int) -> str | None:
    verbosity = get_verbosity()
    set_verbosity_error()  # the library has advice about tokens that the copy does not have
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _difference(config_class.from_dict(json.loads(values)), longest)
    except CannotPack as error:
        return str(error)
    except Exception as error:  # whatever a library's class raises for sizes or arguments that it cannot take
        return f"a small copy fails: {first_line(error)}"
    finally:
        set_verbosity(verbosity)


def _shrunken(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with few and narrow layers; heads keep their width, and their number in a group."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    layers = config.num_hidden_layers
    of_layers = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == layers
    }
    # As many layers as it takes to have each kind.
    few = max([2, *(1 + value.index(kind) for value in of_layers.values() for kind in value)])
    few_groups = min(groups, 2)
    few_heads = few_groups * min(heads // groups, 2)
    sizes = SMALL | dict.fromkeys(TOKENS) | {name: value[:few] for name, value in of_layers.items()}
    sizes |= {
        "num_hidden_layers": min(few, layers),
        "num_attention_heads": few_heads,
        "num_key_value_heads": few_groups,
        "hidden_size": few_heads * width,
    }
    for name, size in sizes.items():
        if hasattr(config, name):
            setattr(config, name, size)
    return config


def _difference(config: PretrainedConfig, longest: int) -> str | None:
    """What differs between a packed and the library's padded pass of this model, or None."""
    library = library_class(config)
    with torch.device("meta"):
        weights = library(config).num_parameters()
    if weights > MOST_WEIGHTS:
        return "no small copy of it can be made"
    plain, packed = library(config).double(), packed_class(library)(copy.deepcopy(config)).double()
    packed.set_attn_implementation(PACKED_ATTENTION)
    for model in (plain, packed):
        model.eval()
        model.set_experts_implementation("eager")  # the default one does not take float64
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.dim() > 1:
                parameter.mul_(WEIGHT_FACTOR)
    packed.load_state_dict(plain.state_dict())

    lengths = [longest, min(SHORTER, longest)]
    documents = [torch.randint(config.vocab_size, (length,)) for length in lengths]
    ours = packed(
        input_ids=torch.cat(documents)[None],
        labels=torch.cat(documents)[None],
        document_lengths=torch.tensor(lengths),
    ).loss
    theirs = plain(
        input_ids=_padded(documents, 0),
        labels=_padded(documents, NOT_SUPERVISED),
        attention_mask=_padded([torch.ones_like(document) for document in documents], 0),
        use_cache=False,
    ).loss
    if not torch.isclose(ours, theirs, rtol=TOLERANCE, atol=0):
        return f"a packed batch has the loss {ours:.6g}, and a padded one {theirs:.6g}"
    ours.backward()
    theirs.backward()
    of_packed, of_plain = (dict(model.named_parameters()) for model in (packed, plain))
    if of_packed.keys() != of_plain.keys():
        return "the packed model has other weights"
    gradients: dict[str, Any] = {name: (each.grad, of_plain[name].grad) for name, each in of_packed.items()}
    largest = max(float(theirs.abs().max()) for _, theirs in gradients.values() if theirs is not None)
    for name, (ours, theirs) in gradients.items():
        if (ours is None) != (theirs is None):
            return f"{name} has a gradient in one way only"
        # A gradient that is 0 but for rounding is compared with those of other weights.
        if ours is not None and (ours - theirs).abs().max() > TOLERANCE * max(
            theirs.abs().max(), 1e-3 * largest
        ):
            return f"the gradient of {name} differs between a packed and a padded batch"
    return None


def _padded(documents: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(documents, batch_first=True, padding_value=value)
