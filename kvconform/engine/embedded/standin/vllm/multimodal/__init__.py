"""Items in a prompt that are no text; only where they are and what they are called."""
