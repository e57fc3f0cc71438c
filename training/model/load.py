"""Load a model's weights, and fit its vocabulary to the tokenizer."""

import contextlib
from collections.abc import Mapping, Sequence
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from training.common.errors import UserError, first_line
from training.common.hub import check_model_path
from training.consts import END, MAX_NEW_TOKENS, REPETITION_PENALTY, TEMPERATURE, TOP_P
from training.model.bloom import BloomForCausalLM, is_bloom
from training.model.packed import PACKED_ATTENTION, PackedModel, library_class, packed_class
from training.text.tokenizer import NewTokens
from training.text.tokenizer import new_tokens as find_new_tokens

# Embedding rows are added up to the next multiple of this, because matrix products are faster on such widths.
ROW_MULTIPLE = 64

# The noise that makes new embedding rows differ, in standard deviations of the old tokens' rows.
NEW_ROW_NOISE = 0.01


def load_model(
    path: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    dtype: torch.dtype | str = "auto",
    new_tokens: NewTokens | None = None,
    seed: int = 0,
    packed: bool = False,
    **loading: Any,
) -> PreTrainedModel:
    """The causal language model at `path`, with embedding rows, in and out, for every token of `tokenizer`.

    A Bloom is an instance of `training.model.bloom.BloomForCausalLM`, any other model of transformers' own
    class, or of its `packed_class` if `packed`, which `why_padded` must allow.
    dtype: the type of the weights in memory; "auto" is that of the saved ones. new_tokens: the tokens of
    `tokenizer` that the tokenizer at `path` does not have; where None, that tokenizer is read to find them.
    seed: of the noise in new embedding rows. loading: more arguments for transformers' `from_pretrained`.
    Raises UserError where there is no model.
    """
    model = load_base_model(path, dtype=dtype, packed=packed, **loading)
    if new_tokens is None:
        new_tokens = find_new_tokens(path, tokenizer)
    end = tokenizer.get_vocab()[END]
    if new_tokens.get(end) == []:
        new_tokens = new_tokens | {end: _eos_tokens(model, tokenizer)}
    fit_vocabulary(model, tokenizer, new_tokens, seed)
    note_end(model, tokenizer)
    return model


def load_base_model(
    path: str, *, dtype: torch.dtype | str = "auto", packed: bool = False, **loading: Any
) -> PreTrainedModel:
    """The causal language model at `path`, unchanged. Raises UserError where there is none."""
    config = read_config(path)
    if is_bloom(config):
        model_class = BloomForCausalLM
    elif packed:
        model_class = packed_class(library_class(config))
        loading["attn_implementation"] = PACKED_ATTENTION
    else:
        model_class = AutoModelForCausalLM
    try:
        return model_class.from_pretrained(path, dtype=dtype, trust_remote_code=False, **loading)
    except (OSError, ValueError, SafetensorError, EOFError, UnpicklingError) as error:
        raise _no_model(path, error) from None


def takes_packed_batches(model: torch.nn.Module) -> bool:
    """Whether a model takes examples laid end to end without padding, with an adapter or without.

    A Bloom does, and any other model that was loaded with `packed`.
    """
    return any(isinstance(module, BloomForCausalLM | PackedModel) for module in model.modules())


def read_config(path: str) -> PretrainedConfig:
    """The configuration of the model at `path`. Raises UserError where there is none."""
    check_model_path(path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _no_model(path, error) from None


def _no_model(path: str, error: Exception) -> UserError:
    return UserError(f"{path}: no causal language model that can be loaded ({first_line(error)})")


def _eos_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The first eos token that the model's configuration names, where the base's tokenizer names none.

    Only a special token counts: 2 is also what a configuration has that says nothing about eos.
    """
    named = model.generation_config.eos_token_id if model.generation_config else None
    special = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special]
    return [token for token in (named if isinstance(named, list) else [named]) if token in special][:1]


def fit_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    new_tokens: Mapping[int, Sequence[int]],
    seed: int,
    noise: float = NEW_ROW_NOISE,
) -> None:
    """Give every token of `tokenizer` an embedding row, in and out; never take a row away.

    new_tokens: for the id of each token that the model's own tokenizer did not have, the ids of the tokens
    that its embedding rows start from. Where embedding rows are missing, the embedding and the head grow to
    the next multiple of ROW_MULTIPLE. The embedding rows of new tokens become the mean of the rows that they
    start from, plus a little noise; where there are none, and in the other rows that are added, it is the
    mean of all rows of known tokens. The rows of known tokens are not touched. noise: in standard deviations
    of those.
    """
    known = set(tokenizer.get_vocab().values()).difference(new_tokens)
    rows = model.config.vocab_size
    fitted = fitted_rows(rows, tokenizer)
    if fitted > rows:
        model.resize_token_embeddings(fitted, mean_resizing=False)
    new_rows = sorted({*new_tokens, *range(rows, model.config.vocab_size)})
    if new_rows:
        known_rows = {token for token in known if token < rows}
        starts = [[token for token in new_tokens.get(row, ()) if token in known_rows] for row in new_rows]
        for matrix in token_matrices(model):
            _initialise_rows(matrix, new_rows, starts, sorted(known_rows), noise, seed)


def fitted_rows(rows: int, tokenizer: PreTrainedTokenizerFast) -> int:
    """How many embedding rows a model with `rows` of them has once there is one for every token."""
    tokens = max(tokenizer.get_vocab().values()) + 1
    return rows if tokens <= rows else -(-tokens // ROW_MULTIPLE) * ROW_MULTIPLE


def token_matrices(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The embedding, the head's matrix unless it is the embedding, and the head's bias if there is one."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    matrices = [embedding.get_parameter("weight")]
    if head is not None and head.weight is not embedding.weight:
        matrices.append(head.weight)
    bias = getattr(head, "bias", None)
    if bias is not None:
        matrices.append(bias)
    return matrices


def _initialise_rows(
    matrix: torch.nn.Parameter,
    new_rows: list[int],
    starts: list[list[int]],
    known_rows: list[int],
    noise: float,
    seed: int,
) -> None:
    """Set each of `new_rows` to the mean of the rows in its `starts`, or of all known ones, plus noise.

    matrix: (vocabulary, hidden), or a bias (vocabulary,). Rows are given by index.
    """
    with torch.no_grad(), gather_weights(matrix):
        values = matrix[torch.tensor(known_rows, device=matrix.device)]
        mean = values.mean(dim=0, dtype=torch.float32)
        rows = [matrix[start].mean(dim=0, dtype=torch.float32) if start else mean for start in starts]
        random = torch.randn((len(rows), *matrix.shape[1:]), generator=torch.Generator().manual_seed(seed))
        noisy = torch.stack(rows) + noise * values.std() * random.to(matrix.device)
        matrix[torch.tensor(new_rows, device=matrix.device)] = noisy.to(matrix.dtype)


def gather_weights(
    weights: torch.nn.Parameter | list[torch.nn.Parameter],
) -> contextlib.AbstractContextManager:
    """A block in which ZeRO-3 has gathered the weights; at its end, all ranks get rank 0's changes."""
    if not is_deepspeed_zero3_enabled():
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(weights, modifier_rank=0)


def note_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Have `generate` end an answer at `<|End|>`, and sample by default as the original release does."""
    model.config.eos_token_id = tokenizer.convert_tokens_to_ids(END)
    model.generation_config = default_generation_config(tokenizer)


def default_generation_config(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """The sampling of the original release, with `<|End|>` as eos and pad token."""
    end = tokenizer.convert_tokens_to_ids(END)
    return GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        repetition_penalty=REPETITION_PENALTY,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=end,
        pad_token_id=end,
    )
