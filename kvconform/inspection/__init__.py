"""A first look at a connector class from its source alone: nothing of it is imported."""
