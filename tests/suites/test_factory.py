"""What vLLM's own factory raises for a connector that it can't find or won't build: facts that the suites rely on."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("vllm_cpu")

FILE_STORE = "kvconform.reference.file_store"


@pytest.fixture
def factory() -> Any:
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    return KVConnectorFactory


def transfer(name: str | None, module: str | None = None) -> Any:
    from vllm.config.kv_transfer import KVTransferConfig

    return KVTransferConfig(kv_connector=name, kv_connector_module_path=module, kv_role="kv_both" if name else None)


@pytest.mark.parametrize(
    ("name", "module", "kind", "words"),
    [
        (None, None, ValueError, "Connector name is not set in KVTransferConfig"),
        ("NoSuchConnector", None, ValueError, "Unsupported connector type: NoSuchConnector"),
        ("FileStoreConnector", "", ValueError, "kv_connector_module_path cannot be an empty string"),
        ("NoSuchClass", FILE_STORE, AttributeError, f"Class NoSuchClass not found in {FILE_STORE}"),
        ("FileStoreConnector", "no_such_module_anywhere", ModuleNotFoundError, "no_such_module_anywhere"),
    ],
    ids=["no name", "unknown name", "empty module path", "no such class", "no such module"],
)
def test_class_that_cannot_be_found(
    factory: Any, name: str | None, module: str | None, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        factory.get_connector_class(transfer(name, module))
    assert type(caught.value) is kind


def test_configuration_without_transfer(factory: Any) -> None:
    from vllm.config import DeviceConfig, VllmConfig

    config = VllmConfig(device_config=DeviceConfig("cpu"))
    with pytest.raises(ValueError, match="kv_transfer_config must be set to create a connector"):
        factory.create_connector(config, None, None)


def test_name_registered_twice(factory: Any) -> None:
    with pytest.raises(ValueError, match="Connector 'ExampleConnector' is already registered"):
        factory.register_connector("ExampleConnector", "anywhere", "Anything")


def test_unregistered_name_asked_for_by_name(factory: Any) -> None:
    with pytest.raises(ValueError, match="Connector 'NoSuchConnector' is not registered"):
        factory.get_connector_class_by_name("NoSuchConnector")


def test_module_path_wins_over_a_registered_name(factory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    module = tmp_path / "same_name_as_vllms.py"
    module.write_text(f"from {FILE_STORE} import FileStoreConnector as ExampleConnector\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = factory.get_connector_class(transfer("ExampleConnector", "same_name_as_vllms"))
    assert found.__module__ == FILE_STORE


def test_keyword_argument_is_looked_for_by_name(factory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    module = tmp_path / "two_kinds_of_constructors.py"
    module.write_text(
        "class Named:\n    def __init__(self, config, role, kv_cache_config): pass\n"
        "class Open:\n    def __init__(self, *args, **kwargs): pass\n"
        "class Renamed:\n    def __init__(self, config, role, cache): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("Named", "Open"):
        assert factory.get_connector_class(transfer(name, module.stem)).__name__ == name
    with pytest.raises(ValueError, match="Renamed uses deprecated 2-argument constructor signature"):
        factory.get_connector_class(transfer("Renamed", module.stem))


def test_validation_wraps_value_errors_only() -> None:
    """What a user of vLLM sees: the configuration's validator turns a ValueError into its own, others pass through."""
    from pydantic import ValidationError
    from vllm.config import DeviceConfig, VllmConfig

    with pytest.raises(ValidationError, match="Unsupported connector type: NoSuchConnector"):
        VllmConfig(device_config=DeviceConfig("cpu"), kv_transfer_config=transfer("NoSuchConnector"))
    with pytest.raises(AttributeError, match="Class NoSuchClass not found"):
        VllmConfig(device_config=DeviceConfig("cpu"), kv_transfer_config=transfer("NoSuchClass", FILE_STORE))
