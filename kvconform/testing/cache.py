"""Complete KV cache configurations for tests, planned by vLLM's own functions."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack

from kvconform.engine.options import EngineOptions
from kvconform.kvcache.shape import AttentionKind, KVCacheShape, LayerShape, ShapeError
from kvconform.testing.configuration import VllmConfigFactory

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec, KVCacheSpec

    from kvconform.kvcache.build import KVCacheConfigs

    #: A group as vLLM has it, or its layer names and its spec.
    GroupLike: TypeAlias = KVCacheGroupSpec | tuple[Sequence[str], KVCacheSpec]
    #: Plans with (configuration, layout, number of blocks).
    Planner: TypeAlias = Callable[[VllmConfig, str, int], KVCacheConfigs]


class CacheArguments(TypedDict, total=False):
    """The whole cache in words; every name has the default of :class:`KVCacheShape` or :class:`LayerShape`.

    ``layers`` is a number of equal layers, which the names after ``kernel_block_size`` describe, or a sequence of
    LayerShape. ``dtype`` is a torch dtype or its name.
    """

    layers: int | Sequence[LayerShape]
    layout: str
    num_blocks: int
    kernel_block_size: int | None
    kind: AttentionKind
    block_size: int
    num_kv_heads: int
    head_size: int
    head_size_v: int | None
    dtype: str | torch.dtype
    sliding_window: int | None
    page_padding: int


_OF_THE_CACHE = ("layout", "num_blocks", "kernel_block_size")
_OF_A_LAYER = (
    "kind",
    "block_size",
    "num_kv_heads",
    "head_size",
    "head_size_v",
    "dtype",
    "sliding_window",
    "page_padding",
)


@dataclass(frozen=True, eq=False)
class KVCachePlan:
    """A planned KV cache: what vLLM's engine core hands to the two roles of a connector.

    Args:
        worker: the worker's KVCacheConfig.
        scheduler: the scheduler's, a deep copy; a group of layers with different specs has the first one's there
            (vllm/v1/core/kv_cache_utils.py, generate_scheduler_kv_cache_config, 0.32.0).
        vllm_config: the configuration it was planned with; its cache_config agrees with the plan.
        kernel_block_size: tokens per row of the registered tensors, or None for whole blocks.
    """

    worker: KVCacheConfig
    scheduler: KVCacheConfig
    vllm_config: VllmConfig
    kernel_block_size: int | None = None

    @property
    def layout(self) -> str:
        """Name of the physical layout, e.g. "LBNHC"."""
        return str(self.worker.kv_cache_layout)

    @property
    def num_blocks(self) -> int:
        """Blocks with the null block, block 0, which holds nobody's tokens."""
        return int(self.worker.num_blocks)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Layer names per KV cache group."""
        return tuple(tuple(group.layer_names) for group in self.worker.kv_cache_groups)

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Tokens per block, per KV cache group."""
        return tuple(int(group.kv_cache_spec.block_size) for group in self.worker.kv_cache_groups)

    @property
    def specs(self) -> dict[str, KVCacheSpec]:
        """Layer name -> spec of that layer."""
        from kvconform.kvcache.build import specs_of

        return {name: spec for group in self.worker.kv_cache_groups for name, spec in specs_of(group).items()}

    @property
    def kernel_block_sizes(self) -> list[int] | None:
        """``kernel_block_size`` once per group, as vLLM's allocate_kv_cache takes it."""
        return None if self.kernel_block_size is None else [self.kernel_block_size] * len(self.groups)


@dataclass(frozen=True, repr=False)
class KVCacheConfigFactory:
    """Plans KV caches; what the fixture ``make_test_kv_cache_config`` returns."""

    make_vllm_config: VllmConfigFactory

    def __call__(
        self,
        shape: KVCacheShape | None = None,
        *,
        specs: Mapping[str, KVCacheSpec] | None = None,
        groups: Sequence[GroupLike] | None = None,
        vllm_config: VllmConfig | None = None,
        **given: Unpack[CacheArguments],
    ) -> KVCachePlan:
        """Plan a KV cache that is given in one of four ways.

        Args:
            shape: the cache as plain data; vLLM forms the groups.
            specs: layer name -> vLLM's KVCacheSpec; vLLM forms the groups.
            groups: vLLM's KVCacheGroupSpec objects, or (layer names, KVCacheSpec) pairs, taken as they are.
            vllm_config: a configuration that no KV cache was planned with yet. By default a fresh one with the
                connector under test, so that vLLM merges groups for a class that is not SupportsHMA.
            given: the cache in words, see :class:`CacheArguments`; beside ``specs`` or ``groups`` only
                ``layout``, ``num_blocks`` and ``kernel_block_size``.

        Raises:
            ShapeError: contradicting or unknown arguments, or a cache that vLLM cannot plan or allocate.
        """
        ways = {"shape": shape, "specs": specs, "groups": groups}
        chosen = [name for name, value in ways.items() if value is not None]
        if len(chosen) > 1:
            raise ShapeError(f"{' and '.join(chosen)} were given: give one of them, each describes the whole KV cache")
        allowed = {"shape": (), "specs": _OF_THE_CACHE, "groups": _OF_THE_CACHE}[chosen[0]] if chosen else _ALL
        _check_names(given, allowed, chosen[0] if chosen else None)
        if specs is not None:
            return self._plan_given(_planner_of_specs(specs), list(specs.values()), vllm_config, given)
        if groups is not None:
            complete = [_group(entry) for entry in groups]
            return self._plan_given(
                _planner_of_groups(complete), [group.kv_cache_spec for group in complete], vllm_config, given
            )
        return self._plan_shape(shape_from(**given) if shape is None else shape, vllm_config)

    def _plan_shape(self, shape: KVCacheShape, vllm_config: VllmConfig | None) -> KVCachePlan:
        from kvconform.kvcache.build import layer_specs

        return self._plan(_planner_of_specs(layer_specs(shape)), shape, vllm_config, shape.kernel_block_size)

    def _plan_given(
        self, planner: Planner, specs: list[KVCacheSpec], vllm_config: VllmConfig | None, given: CacheArguments
    ) -> KVCachePlan:
        if not specs:
            raise ShapeError("no specs or groups were given: a KV cache needs at least one layer")
        for spec in specs:
            if not isinstance(getattr(spec, "block_size", None), int):
                raise ShapeError(f"{spec!r} is not one of vLLM's KVCacheSpec: give e.g. a FullAttentionSpec")
        kernel = given.get("kernel_block_size")
        sizes = sorted({spec.block_size for spec in specs})
        if kernel is not None and (kernel < 1 or any(size % kernel for size in sizes)):
            raise ShapeError(f"kernel_block_size {kernel} must divide every block size, and these are {sizes}")
        whole: dict[str, Any] = {name: given[name] for name in ("layout", "num_blocks") if name in given}
        # Stands for the layers where only layout and block counts matter.
        outline = KVCacheShape((LayerShape(block_size=sizes[0]),), **whole)
        return self._plan(planner, outline, vllm_config, kernel)

    def _plan(
        self, planner: Planner, outline: KVCacheShape, vllm_config: VllmConfig | None, kernel: int | None
    ) -> KVCachePlan:
        from vllm.config import set_current_vllm_config

        config = self.make_vllm_config(EngineOptions(shape=outline)) if vllm_config is None else vllm_config
        if config.cache_config.kv_cache_layout is not None:
            raise ShapeError(
                f"this VllmConfig already has a KV cache of layout {config.cache_config.kv_cache_layout}: "
                "make another one with make_vllm_config() for another KV cache"
            )
        with _refusals(outline.layout), set_current_vllm_config(config):
            configs = planner(config, outline.layout, outline.num_blocks)
            planned = KVCachePlan(configs.worker, configs.scheduler, config, kernel)
            allocate_views(planned, "meta")
        return planned


def _planner_of_specs(specs: Mapping[str, KVCacheSpec]) -> Planner:
    from kvconform.kvcache.build import plan_specs

    return lambda config, layout, num_blocks: plan_specs(config, dict(specs), layout, num_blocks)


def _planner_of_groups(groups: list[KVCacheGroupSpec]) -> Planner:
    from kvconform.kvcache.build import plan_groups

    names = [name for group in groups for name in group.layer_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not all(group.layer_names for group in groups):
        wrong = f"layer {twice[0]!r} is in several" if twice else "one without layers is"
        raise ShapeError(f"{wrong} of the groups given: a KV cache group has layers, and every layer is in one group")
    return lambda config, layout, num_blocks: plan_groups(config, groups, layout, num_blocks)


def allocate_views(cache: KVCachePlan, device: str) -> dict[str, torch.Tensor]:
    """vLLM's own tensors on a device, layer name -> [B, H, N, C]; "meta" checks everything and takes no memory."""
    import torch
    from vllm.v1.worker.utils import allocate_kv_cache

    layout = cache.vllm_config.cache_config.get_resolved_kv_cache_layout()
    views: dict[str, torch.Tensor] = allocate_kv_cache(
        cache.worker, torch.device(device), layout, cache.kernel_block_sizes
    )
    return views


def shape_from(**given: Unpack[CacheArguments]) -> KVCacheShape:
    """The shape that the arguments describe.

    Raises:
        ShapeError: a value that :class:`KVCacheShape` or :class:`LayerShape` refuses, or ones that contradict.
    """
    whole: dict[str, Any] = {name: value for name, value in given.items() if name in _OF_THE_CACHE}
    layer: dict[str, Any] = {name: value for name, value in given.items() if name in _OF_A_LAYER}
    layers = given.get("layers", LayerShape().count)
    if not isinstance(layers, int):
        shapes = tuple(layers)
        if layer or not all(isinstance(entry, LayerShape) for entry in shapes):
            wrong = f"{', '.join(layer)} beside them" if layer else repr(layers)
            raise ShapeError(
                f"layers is a number or a sequence of LayerShape with nothing said of layers beside it, not {wrong}"
            )
        return KVCacheShape(layers=shapes, **whole)
    if "dtype" in layer:
        layer["dtype"] = str(layer["dtype"]).removeprefix("torch.")
    if layer.get("kind") == "mla":
        layer.setdefault("num_kv_heads", 1)
    return KVCacheShape(layers=(LayerShape(count=layers, **layer),), **whole)


_ALL = tuple(CacheArguments.__annotations__)


def _check_names(given: Iterable[str], allowed: Sequence[str], beside: str | None) -> None:
    for name in given:
        if name in allowed:
            continue
        if beside is not None and name in _ALL:
            what = f"only {', '.join(allowed)}" if allowed else "nothing"
            raise ShapeError(f"{name} was given beside {beside}: {beside} describes the layers, {what} may be added")
        close = difflib.get_close_matches(name, allowed, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ShapeError(
            f"unknown argument {name}: {hint}the arguments are shape, specs, groups, vllm_config, {', '.join(_ALL)}"
        )


def _group(entry: GroupLike) -> KVCacheGroupSpec:
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec

    if isinstance(entry, KVCacheGroupSpec):
        return entry
    if not isinstance(entry, tuple) or len(entry) != 2 or isinstance(entry[0], str):
        raise ShapeError(f"{entry!r} is not a KV cache group: give a KVCacheGroupSpec or ([layer name, ...], spec)")
    return KVCacheGroupSpec(list(entry[0]), entry[1])


@contextmanager
def _refusals(layout: str) -> Iterator[None]:
    """vLLM refuses caches by several kinds of exceptions, assertions among them."""
    try:
        yield
    except (AssertionError, NotImplementedError, ValueError, RuntimeError) as error:
        if isinstance(error, ShapeError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ShapeError(f"vLLM cannot plan or allocate this KV cache with layout {layout}: {reason}") from error
