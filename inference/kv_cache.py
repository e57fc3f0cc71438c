"""The keys and values of a dialogue so far, so that its next turn computes those of its own tokens only."""

from collections.abc import Sequence

from transformers import DynamicCache


class KVCache:
    """The keys and values of one dialogue, to be handed to each `stream` of it.

    Whatever changed in the dialogue since then (a turn taken back, an answer stopped or asked for again), the
    next prompt reuses the tokens that it shares with the last one and its answer, from the first token on.
    """

    def __init__(self) -> None:
        self.clear()

    def __len__(self) -> int:
        """The number of tokens whose keys and values are held."""
        return len(self._ids)

    def clear(self) -> None:
        self._ids: list[int] = []
        self._cache = DynamicCache()

    def recall(self, prompt_ids: Sequence[int]) -> DynamicCache:
        """The cache of the longest prefix of `prompt_ids` that is held, never including their last token.

        Nothing is held from here until `keep`, so that an answer that fails halfway leaves nothing behind.
        """
        pairs = zip(self._ids, prompt_ids[:-1], strict=False)
        common = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
        if common is None:
            common = min(len(self._ids), len(prompt_ids) - 1)
        cache = self._cache
        cache.crop(common - len(self._ids))
        self.clear()
        return cache if common else DynamicCache()

    def keep(self, cache: DynamicCache, input_ids: Sequence[int]) -> None:
        """Hold the cache of a prompt and its answer; an answer's last token has no keys and values yet."""
        self._cache, self._ids = cache, list(input_ids[: cache.get_seq_length()])
