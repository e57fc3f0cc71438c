"""The saved model: a directory that plain transformers loads, complete or not there."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from training.common.console import say
from training.common.files import written_aside
from training.consts import END
from training.model.context import note_context
from training.model.load import note_end, token_matrices
from training.text.tokenizer import save_tokenizer, spells_in_bytes

# Where a model is written until all of it is there, within its directory.
INCOMPLETE_MODEL = ".incomplete-model"

# Other names that tools besides transformers have for the two, by the kind of model.
ROPE_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    directory: str | os.PathLike,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write what plain transformers loads: weights, configurations, tokenizer with chat template.

    state_dict: the weights, where they are not those in `model` (ZeRO-3 gathers them). A tied head is written
    once, and no embedding row beyond the tokens of a SentencePiece tokenizer. All files are written aside and
    then placed, config.json last, since readers look for it. An earlier model in `directory` is replaced.
    """
    directory = Path(directory)
    model.config.use_cache = True
    note_context(model.config)
    if END in tokenizer.get_vocab():
        note_end(model, tokenizer)
    weights = untied_weights(model, state_dict or model.state_dict())
    rows = cut_rows_beyond_tokens(model, tokenizer, weights)
    with written_aside(directory, INCOMPLETE_MODEL, last="config.json") as staging:
        model.save_pretrained(staging, state_dict=weights)
        save_tokenizer(tokenizer, staging)
        has_older_names = write_older_names(staging, vocab_size=rows)
    if not has_older_names:
        say(
            f"WARNING: {directory}: its layers have rotary embeddings of several kinds, for which "
            "config.json has transformers 5's names only; transformers 4 and mlx-lm may compute other logits"
        )


def untied_weights(model: PreTrainedModel, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each weight once, copied into memory of its own, since ZeRO-2's weights are slices of one buffer."""
    names = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - names
    return {name: tensor.detach().cpu().clone() for name, tensor in state_dict.items() if name not in tied}


def cut_rows_beyond_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, weights: dict[str, torch.Tensor]
) -> int:
    """Leave out of `weights` the embedding rows, in and out, that no token has; return how many are left.

    That is done for a SentencePiece tokenizer only, where llama.cpp refuses a model with more rows.
    """
    rows, tokens = model.config.vocab_size, max(tokenizer.get_vocab().values()) + 1
    if not spells_in_bytes(tokenizer) or rows <= tokens:
        return rows
    matrices = {id(matrix) for matrix in token_matrices(model)}
    for name, weight in model.named_parameters():
        if id(weight) in matrices:
            weights[name] = weights[name][:tokens].clone()
    return tokens


def write_older_names(directory: Path, **changes: Any) -> bool:
    """Add to a saved config.json the names under which older loaders look for the rotary embeddings.

    transformers 5 writes `rope_parameters` alone, and takes the other names out again whenever it saves;
    transformers 4 and mlx-lm ignore it without a word, and compute other logits. changes: other values to
    write. Returns whether the older names say all that `rope_parameters` does.
    """
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    names = _older_rope_names(config)
    config |= changes | (names or {})
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return names is not None


def _older_rope_names(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What older loaders call the content of `rope_parameters`, or None where layers differ in it."""
    rope = config.get("rope_parameters")
    if not rope:
        return {}
    of_layers = [part for part in rope.values() if isinstance(part, dict)]
    if of_layers:
        rope = of_layers[0]
        # transformers 5 would take scaling that is written for all layers in place of that of each.
        if any(part != rope for part in of_layers) or rope.get("rope_type") != "default":
            return None
    apart = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    scaling = {name: value for name, value in rope.items() if name not in apart}
    others = ROPE_NAMES.get(config["model_type"], {})
    apart |= {others[name]: value for name, value in apart.items() if name in others}
    return apart | {"rope_scaling": None if scaling == {"rope_type": "default"} else scaling}
