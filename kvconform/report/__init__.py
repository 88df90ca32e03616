"""Reports of a run: one model, several renderings."""
