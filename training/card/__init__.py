"""What a card does with our Bloom: the parts of `training.card_check`, and the pages that they write."""
