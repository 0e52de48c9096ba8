"""From encoded rows to batches: the store, packing, order and collation. Below planning and training."""
