"""``--kvconform-bench``: how fast a connector saves and loads, and what its hooks cost. Figures, never verdicts."""
