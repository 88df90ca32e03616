"""KV caches under test: their shapes as plain data, the tensors vLLM makes of them, and the oracle of their content."""
