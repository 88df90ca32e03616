"""Connectors that keep every rule of the contract, written to be read and copied from."""
