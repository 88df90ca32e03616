"""A small engine of our own for where vLLM is not installed.

``standin`` holds modules under vLLM's names with what connectors and the kit's driver use of them; ``finder`` puts them
in vLLM's place in a process that is about to load a connector. The driver, the checks and the connectors run unchanged.
"""
