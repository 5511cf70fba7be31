"""The engines that a process has loaded, within one memory budget.

Models that fit together stay together. Where they do not, those that were not used for longest leave, and never one
that is in use: a model that has no room beside those waits.

Invariant: nothing is evicted for a model that has no room even then.

Weakness: an engine was told its budget when it was loaded. One that was there first may take room for keys and values
that a later one counts on; an engine that runs out of memory makes do with fewer requests at a time.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from bitinglip.domain.catalogue import get_kind
from bitinglip.engine import wire
from bitinglip.engine.base import Engine, EngineConfig
from bitinglip.errors import ModelTooLargeError
from bitinglip.telemetry import get_logger

Key = tuple[str, str | None]
"""A kind, and the model if it needs one."""

NOTEWORTHY_SHARE = 0.05
"""A model that has grown or shrunk by this share of the budget is told of."""

log = get_logger()


class LoadedEngines:
    """Engines by kind and model, the longest unused first.

    Args:
        devices: Torch devices of this process.
        slots: Requests that compute at once, per engine.
        memory_bytes: What all engines together may hold on each device; None: no limit known, nothing is evicted.
    """

    def __init__(self, *, devices: Sequence[str], slots: int, memory_bytes: int | None) -> None:
        self._devices = devices
        self._slots = slots
        self._budget = memory_bytes
        self._engines: OrderedDict[Key, Engine] = OrderedDict()
        self._needs: dict[Key, int] = {}
        self._told: dict[Key, int] = {}
        self._loads = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._engines

    def list_busy(self) -> list[Engine]:
        """Those that have something to do."""
        return [engine for engine in self._engines.values() if engine.busy]

    def get(self, key: Key) -> Engine:
        """One that is loaded. Whether it was used lately is `use`'s to say."""
        return self._engines[key]

    def use(self, key: Key) -> Engine:
        """One that is loaded, for a request: it is the last one to leave now."""
        self._engines.move_to_end(key)
        return self._engines[key]

    def load(self, key: Key, folder: str | None, on_load: Callable[[], None], *, may_evict: bool = True) -> bool:
        """Load what is not loaded yet; False if the models in use leave no room for it.

        Args:
            key: What to load.
            folder: Where the model is.
            on_load: Called when there is room, just before it is loaded.
            may_evict: Whether models that are not in use may leave for it.

        Raises:
            ModelTooLargeError: If the budget is too small for it alone.
        """
        while self._make_room(key, folder, may_evict=may_evict):
            left = None if self._budget is None else self._budget - self._held()
            on_load()
            try:
                self._engines[key] = self._open(key, folder, left)
            except ModelTooLargeError as exc:
                if left is None or not self._held():
                    raise
                # More than its files say; with more of the others gone it may fit.
                self._needs[key] = max(exc.needed_bytes, left + 1)
                continue
            self._needs[key] = self._engines[key].memory_bytes
            self._loads += 1
            return True
        return False

    def describe(self) -> wire.Holding:
        """What is loaded, and what it takes."""
        self._told = {key: engine.memory_bytes for key, engine in self._engines.items()}
        model_bytes: dict[str, int] = {}
        for (_, model), size in self._told.items():
            if model:
                model_bytes[model] = model_bytes.get(model, 0) + size * len(self._devices)
        return wire.Holding(model_bytes, sum(self._told.values()), self._loads)

    def has_changed(self) -> bool:
        """Whether something differs from what was described last, by an amount that matters."""
        if self._told.keys() != self._engines.keys():
            return True
        return any(
            abs(engine.memory_bytes - told) > NOTEWORTHY_SHARE * (self._budget or told)
            for engine, told in zip(self._engines.values(), map(self._told.__getitem__, self._engines), strict=True)
        )

    def _make_room(self, key: Key, folder: str | None, *, may_evict: bool) -> bool:
        if self._budget is None:
            return True
        need = self._estimate(key, folder)
        if need > self._budget:
            raise ModelTooLargeError(key[1] or key[0], needed_bytes=need, budget_bytes=self._budget)
        stays = sum(engine.memory_bytes for engine in self._engines.values() if engine.busy or not may_evict)
        if need and stays + need > self._budget:
            return False
        for other, engine in list(self._engines.items()):
            if self._held() + need <= self._budget:
                break
            if not engine.busy:
                log.info("model_evicted", model=other[1])
                self._engines.pop(other).close()
        return True

    def _open(self, key: Key, folder: str | None, left: int | None) -> Engine:
        kind, model = key
        log.info("model_loading", kind=kind, model=model)
        engine: Engine = get_kind(kind).import_engine()(
            EngineConfig(
                model=model or kind,
                folder=Path(folder) if folder else None,
                devices=self._devices,
                max_rows=self._slots,
                memory_bytes=left,
                whole_bytes=self._budget,
            )
        )
        return engine

    def _estimate(self, key: Key, folder: str | None) -> int:
        """Bytes on the fullest device: as measured when it was loaded before, else its share of the weights."""
        if key in self._needs:
            return self._needs[key]
        weights = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) if folder else 0
        return -(-weights // len(self._devices))

    def _held(self) -> int:
        return sum(engine.memory_bytes for engine in self._engines.values())
