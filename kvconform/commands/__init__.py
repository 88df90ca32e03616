"""The commands of ``kvconform``, by subject. None of these modules imports torch or vLLM."""
