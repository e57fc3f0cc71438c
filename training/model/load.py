"""Load a model's weights, and fit its vocabulary to the tokenizer."""

import contextlib
from collections.abc import Collection
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from training.common.errors import UserError, first_line
from training.common.hub import check_model_path
from training.consts import END, MAX_NEW_TOKENS, REPETITION_PENALTY, TEMPERATURE, TOP_P
from training.model.bloom import BloomForCausalLM
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
    new_tokens: Collection[int] | None = None,
    seed: int = 0,
    **loading: Any,
) -> PreTrainedModel:
    """The causal language model at `path`, with embedding rows, in and out, for every token of `tokenizer`.

    A Bloom is an instance of `training.model.bloom.BloomForCausalLM`, any other model of transformers' own.
    dtype: the type of the weights in memory; "auto" is that of the saved ones. new_tokens: the ids of
    `tokenizer` that the tokenizer at `path` does not have; where None, that tokenizer is read to find them.
    seed: of the noise in new embedding rows. loading: more arguments for transformers' `from_pretrained`.
    Raises UserError where there is no model.
    """
    model = load_base_model(path, dtype=dtype, **loading)
    if new_tokens is None:
        new_tokens = find_new_tokens(path, tokenizer)
    fit_vocabulary(model, tokenizer, new_tokens, seed)
    model.config.eos_token_id = tokenizer.convert_tokens_to_ids(END)
    model.generation_config = default_generation_config(tokenizer)
    return model


def load_base_model(path: str, *, dtype: torch.dtype | str = "auto", **loading: Any) -> PreTrainedModel:
    """The causal language model at `path`, unchanged. Raises UserError where there is none."""
    model_class = BloomForCausalLM if is_packed(read_config(path)) else AutoModelForCausalLM
    try:
        return model_class.from_pretrained(path, dtype=dtype, **loading)
    except (OSError, ValueError, SafetensorError) as error:
        raise _no_model(path, error) from None


def is_packed(config: PretrainedConfig) -> TypeGuard[BloomConfig]:
    """Whether models of this configuration take packed batches, examples laid end to end without padding.

    A Bloom does, for which we have a class of our own; every other model takes padded batches.
    """
    return config.model_type == "bloom"


def read_config(path: str) -> PretrainedConfig:
    """The configuration of the model at `path`. Raises UserError where there is none."""
    check_model_path(path)
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise _no_model(path, error) from None


def _no_model(path: str, error: Exception) -> UserError:
    return UserError(f"{path}: no causal language model that can be loaded ({first_line(error)})")


def fit_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, new_tokens: Collection[int], seed: int
) -> None:
    """Give every token of `tokenizer` an embedding row, in and out; never take a row away.

    new_tokens: the ids that the model's own tokenizer did not have. Where embedding rows are missing, the
    embedding and the head grow to the next multiple of ROW_MULTIPLE. The embedding rows of new tokens, and
    those added, become the mean of the other tokens' plus a little noise; the other tokens' are not touched.
    """
    known = set(tokenizer.get_vocab().values()).difference(new_tokens)
    rows = model.config.vocab_size
    fitted = fitted_rows(rows, tokenizer)
    if fitted > rows:
        model.resize_token_embeddings(fitted, mean_resizing=False)
    new_rows = sorted({*new_tokens, *range(rows, model.config.vocab_size)})
    if new_rows:
        known_rows = torch.tensor(sorted(token_id for token_id in known if token_id < rows))
        for matrix in token_matrices(model):
            _initialise_rows(matrix, torch.tensor(new_rows), known_rows, seed)


def fitted_rows(rows: int, tokenizer: PreTrainedTokenizerFast) -> int:
    """How many embedding rows a model with `rows` of them has once there is one for every token."""
    tokens = max(tokenizer.get_vocab().values()) + 1
    return rows if tokens <= rows else -(-tokens // ROW_MULTIPLE) * ROW_MULTIPLE


def average_rows(model: PreTrainedModel, replacements: dict[int, list[int]]) -> None:
    """Set the embedding rows, in and out, of each new token to the mean of those of the tokens it replaces.

    replacements: for the id of each new token, the ids of the tokens that it replaces.
    """
    with torch.no_grad():
        for matrix in token_matrices(model):
            for token, tokens in replacements.items():
                matrix[token] = matrix[tokens].mean(dim=0, dtype=torch.float32)


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
    matrix: torch.nn.Parameter, new_rows: torch.Tensor, known_rows: torch.Tensor, seed: int
) -> None:
    """Set embedding rows, given by index, to the mean of the known ones plus noise.

    matrix: (vocabulary, hidden), or a bias (vocabulary,).
    """
    with torch.no_grad(), gather_weights(matrix):
        values = matrix[known_rows.to(matrix.device)]
        noise = torch.randn((len(new_rows), *matrix.shape[1:]), generator=torch.Generator().manual_seed(seed))
        mean = values.mean(dim=0, dtype=torch.float32)
        rows = mean + NEW_ROW_NOISE * values.std() * noise.to(matrix.device)
        matrix[new_rows.to(matrix.device)] = rows.to(matrix.dtype)


def gather_weights(
    weights: torch.nn.Parameter | list[torch.nn.Parameter],
) -> contextlib.AbstractContextManager:
    """A block in which ZeRO-3 has gathered the weights; at its end, all ranks get rank 0's changes."""
    if not is_deepspeed_zero3_enabled():
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(weights, modifier_rank=0)


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
