"""Scenarios as plain data, the strategies that draw them, and the runner that plays them on an engine."""
