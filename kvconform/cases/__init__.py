"""Case files: one failing scenario each, as plain data, and playing them again."""
