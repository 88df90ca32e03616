"""Engines that drive a connector, the protocol they share, and the history they record."""
