"""The engine ``vllm``: the installed vLLM's scheduler and worker-side hook order, in one process, without a model."""
