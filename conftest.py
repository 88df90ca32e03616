"""Root of the project's own tests. The fixtures of the kit itself come from its pytest plugin."""

pytest_plugins = ["pytester"]
