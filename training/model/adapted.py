"""peft's model with an adapter, saved without the vocabulary. Imported only where there is an adapter."""

from pathlib import Path
from typing import Any

from peft import PeftModelForCausalLM


class AdaptedModel(PeftModelForCausalLM):
    """A model with an adapter, which saves the adapter alone.

    Where the vocabulary has grown, peft's own class would save the whole embedding and head in each
    checkpoint. The rows of new tokens are saved either way, with the adapter.
    """

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        super().save_pretrained(str(save_directory), save_embedding_layers=False, **kwargs)
