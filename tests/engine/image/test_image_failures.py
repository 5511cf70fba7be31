"""What becomes of a batch that fails: memory runs out, a device breaks, one request is to blame."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from image_driver import Clock, ImageDriver, count_drawing_threads

from bitinglip.engine.base import Finished
from bitinglip.engine.image.capacity import CALM_BATCHES, Capacity
from bitinglip.engine.image.decoding import PieceDecoder
from bitinglip.engine.image.drawing import Drawing
from bitinglip.errors import EngineBrokenError

Drive = Callable[..., ImageDriver]
CPU_OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"


def out_of_memory(number: int) -> RuntimeError:
    return torch.OutOfMemoryError("CUDA out of memory") if number % 2 else RuntimeError(CPU_OUT_OF_MEMORY)


def fail_denoising(
    driver: ImageDriver, monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, int], BaseException | None]
) -> None:
    """Let the denoiser raise: `fails(number, rows)` returns what, or None. Guidance doubles a batch's rows."""
    denoiser = driver.pipeline.denoiser
    forward, count = denoiser.forward, 0

    def broken(sample: torch.Tensor, *rest: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if (error := fails(count, len(sample) // 2)) is not None:
            raise error
        return forward(sample, *rest, **options)

    monkeypatch.setattr(denoiser, "forward", broken)


def assert_drawn(driver: ImageDriver, alone: ImageDriver, seeds: list[int]) -> None:
    for seed in seeds:
        expected = alone.draw(prompt=f"picture {seed}", seed=seed)
        assert abs(driver.pipeline.pixels[seed] - expected).max() <= 1e-5
        assert len(driver.result(str(seed))["images"]) == 1


@pytest.mark.parametrize("kind", [0, 1])
def test_a_batch_that_runs_out_of_memory_is_drawn_in_halves(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    driver, seeds = drive(), list(range(1, 9))
    for seed in seeds:
        driver.add(str(seed), seed=seed)
    with monkeypatch.context() as patched:
        # In the second step: nothing of the first may be left.
        fail_denoising(driver, patched, lambda number, rows: out_of_memory(kind) if rows > 2 and number > 1 else None)
        driver.run()
    assert [len(batch) for batch in driver.pipeline.batches] == [8, 4, 2, 2, 2, 2]
    assert_drawn(driver, drive(), seeds)
    assert count_drawing_threads() == 0


def test_a_picture_without_memory_even_alone_is_tried_with_less_and_fails_with_a_size_that_fits(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive()
    driver.draw(seed=1)
    tiled = []
    tile = PieceDecoder.tile

    def note_tiles(self: PieceDecoder, vae: Any) -> bool:
        tiled.append(1)
        return tile(self, vae)

    monkeypatch.setattr(PieceDecoder, "tile", note_tiles)
    fail_denoising(driver, monkeypatch, lambda number, rows: out_of_memory(number))
    driver.add("large", width=64, height=64, seed=2, count=2)
    driver.run()
    failure = driver.failure("large")
    assert failure.code == "out_of_memory"
    assert failure.retryable
    assert "64 x 64" in failure.message
    assert "ask for 32 x 32" in failure.message
    assert driver.pipeline.batches == [[1], [2, 3], [2], [2]]
    assert tiled == [1]
    assert failure.usage.engine_seconds > 0


def test_attention_in_slices_is_for_the_picture_that_needs_it_only(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive()
    names = []

    def fail_once(number: int, rows: int) -> BaseException | None:
        names.append({type(part).__name__ for part in driver.pipeline.denoiser.attn_processors.values()})
        return out_of_memory(1) if number == 1 else None

    with monkeypatch.context() as patched:
        fail_denoising(driver, patched, fail_once)
        driver.add("1", seed=1)
        driver.run()
    assert names[0] == {"AttnProcessor2_0"}
    assert names[1] == {"SlicedAttnProcessor"}
    assert {type(part).__name__ for part in driver.pipeline.denoiser.attn_processors.values()} == {"AttnProcessor2_0"}
    assert "decoded in tiles" in driver.result("1")["notes"][0]


def test_decoding_that_runs_out_of_memory_takes_fewer_rows_and_then_tiles(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, seeds, sizes = drive(), [1, 2, 3, 4], []
    vae = type(driver.pipeline.vae)
    decode = vae._decode

    def broken(self: Any, latents: torch.Tensor, *rest: Any, **options: Any) -> Any:
        sizes.append((len(latents), self.use_tiling))
        if len(latents) > 1:
            raise out_of_memory(len(sizes))
        return decode(self, latents, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(vae, "_decode", broken)
        for seed in seeds:
            driver.add(str(seed), seed=seed)
        driver.run()
    assert sizes == [(4, False), (2, False), *[(1, False)] * 4]
    assert len(driver.pipeline.batches) == 1, "not a step is taken twice"
    assert_drawn(driver, drive(), seeds)


def test_one_row_that_cannot_be_decoded_whole_is_decoded_in_tiles(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive()
    vae = type(driver.pipeline.vae)
    decode = vae._decode

    def broken(self: Any, latents: torch.Tensor, *rest: Any, **options: Any) -> Any:
        if not self.use_tiling:
            raise out_of_memory(1)
        return decode(self, latents, *rest, **options)

    monkeypatch.setattr(vae, "_decode", broken)
    driver.add("1", seed=1)
    driver.run()
    assert "decoded in tiles" in driver.result("1")["notes"][0]
    assert not driver.pipeline.vae.use_tiling
    assert len(driver.pipeline.batches) == 1


def test_a_fault_in_decoding_is_not_taken_for_a_lack_of_memory(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, calls = drive(), []

    def broken(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(type(driver.pipeline.vae), "_decode", broken)
    driver.add("a")
    driver.run()
    assert driver.failure("a").code == "engine_error"
    assert calls == [1]


def test_a_picture_that_ran_out_of_memory_has_it_all_to_itself(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive()
    Clock(monkeypatch).step_seconds = 1.0
    with monkeypatch.context() as patched:
        fail_denoising(driver, patched, lambda number, rows: out_of_memory(1) if number == 1 else None)
        driver.add("a", steps=8)
        driver.add("b", steps=9)
        while not any(drawing.is_thrifty for drawing in driver.engine._drawings.values()):
            driver.step()
        before = len(driver.progress("b"))
        while not any(isinstance(event, Finished) for event in driver.events["a"]):
            driver.step()
        assert len(driver.progress("b")) <= before + 1
    driver.run()
    assert driver.result("b")["images"]


def test_a_picture_that_is_known_not_to_fit_is_drawn_with_less_at_once(drive: Drive) -> None:
    driver = drive(memory_bytes=10**9)
    driver.engine._capacity.note_peak(32 * 32, 500_000_000)
    driver.add("fits", seed=1)
    driver.add("large", width=64, seed=2)
    driver.run()
    assert "notes" not in driver.result("fits")
    assert "decoded in tiles" in driver.result("large")["notes"][0]


def test_only_the_culprit_of_a_failed_batch_fails(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, seeds = drive(), [1, 2, 3]
    for seed in seeds:
        driver.add(str(seed), seed=seed)
    driver.add("culprit", seed=66, count=2)
    with monkeypatch.context() as patched:

        def blame(number: int, rows: int) -> BaseException | None:
            drawing = driver.engine._choose()
            assert drawing is not None
            is_there = any(row.job.id == "culprit" for row in drawing.rows)
            return ValueError("a fault in the model") if is_there else None

        fail_denoising(driver, patched, blame)
        driver.run()
    assert driver.failure("culprit").code == "engine_error"
    assert "a fault in the model" in driver.failure("culprit").message
    assert len(driver.pipeline.batches) == 1 + 4
    assert_drawn(driver, drive(), seeds)


def test_what_a_pipeline_says_of_its_arguments_is_the_requests_fault(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive()

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(type(driver.pipeline.base), "check_inputs", refuse)
    driver.add("a")
    driver.run()
    assert driver.failure("a").code == "invalid_request"
    assert "no such thing" in driver.failure("a").message


def test_a_picture_whose_numbers_overflow_fails_alone(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive()
    vae = type(driver.pipeline.vae)
    decode = vae._decode

    def overflow(self: Any, latents: torch.Tensor, *rest: Any, **options: Any) -> Any:
        made = decode(self, latents, *rest, **options)
        made.sample[1] = torch.nan
        return made

    monkeypatch.setattr(vae, "_decode", overflow)
    for name in "abc":
        driver.add(name, seed=ord(name))
    driver.run()
    assert "not finite" in driver.failure("b").message
    assert driver.result("a")["images"]
    assert driver.result("c")["images"]


def test_a_poisoned_device_breaks_the_engine(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive()
    poison = torch.AcceleratorError("CUDA error: device-side assert triggered")
    fail_denoising(driver, monkeypatch, lambda number, rows: poison)
    driver.add("a")
    with pytest.raises(EngineBrokenError, match="device-side assert"):
        driver.step(2)


def test_with_a_budget_the_first_batch_measures_and_the_next_are_as_large_as_fits(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive(memory_bytes=10**9)
    driver.add("many", count=8, seed=0)
    driver.step()
    assert [len(drawing.rows) for drawing in driver.engine._drawings.values()] == [1]
    # Three rows fit beside the weights.
    per_row = 300_000_000
    monkeypatch.setattr(
        Drawing, "_note_peak", lambda drawing, _: setattr(drawing, "peak_bytes", per_row * len(drawing.rows))
    )
    driver.run()
    assert [len(batch) for batch in driver.pipeline.batches] == [1, 3, 3, 1]
    assert len(driver.result("many")["images"]) == 8


def test_memory_counts_what_the_batch_in_flight_takes(drive: Drive) -> None:
    driver = drive()
    weights = driver.engine.memory_bytes
    assert weights == sum(
        tensor.nbytes for part in driver.pipeline.modules() for tensor in [*part.parameters(), *part.buffers()]
    )
    driver.engine._capacity.note_peak(32 * 32, 1_000_000)
    assert driver.engine.memory_bytes == weights
    driver.add("a", count=3)
    driver.step()
    assert driver.engine.memory_bytes == weights + 3_000_000


def test_the_largest_batch_says_what_a_pixel_takes() -> None:
    capacity = Capacity(16, 1_000)
    assert capacity.count_rows(10) == 1
    capacity.note_peak(10, 100)
    assert capacity.count_rows(10) == 10
    capacity.note_peak(100, 500)
    capacity.note_peak(10, 900)
    assert capacity.count_rows(10) == 16
    assert capacity.count_rows(50) == 4
    assert capacity.count_rows(1_000) == 1
    assert capacity.exceeds_budget(1_000)
    assert not capacity.exceeds_budget(200)


def test_more_rows_are_tried_again_after_calm() -> None:
    capacity = Capacity(16, None)
    capacity.lower(40)
    for _ in range(CALM_BATCHES):
        assert capacity.count_rows(10) == 4
        capacity.note_success(40)
    assert capacity.count_rows(10) == 8
