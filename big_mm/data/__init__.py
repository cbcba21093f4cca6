"""From shards to batches: records, transforms, tokenizers, pipelines, and the embedded world."""
