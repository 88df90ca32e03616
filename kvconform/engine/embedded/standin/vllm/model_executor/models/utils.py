"""Names of layers."""

from __future__ import annotations


def extract_layer_index(layer_name: str, num_attn_module: int = 1) -> int:
    """The number in a layer's name; with several attention modules per layer the number of the module.

    Raises:
        AssertionError: no number, or more of them than one name can have.
    """
    numbers = [int(part) for part in layer_name.split(".") if part.lstrip("+-").isdigit()]
    if num_attn_module == 1 or "attn" not in layer_name:
        assert len(numbers) == 1, f"layer name {layer_name} should only contain one integer"
        return numbers[0]
    assert len(numbers) <= 2, f"layer name {layer_name} should contain most two integers"
    return numbers[0] if len(numbers) < 2 else numbers[0] * num_attn_module + numbers[1]
