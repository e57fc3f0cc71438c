"""From a data file to micro-batches: read, checked, encoded, cached, split, collated."""
