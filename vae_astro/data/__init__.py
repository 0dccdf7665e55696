"""Sky to batches; knows nothing of networks."""
