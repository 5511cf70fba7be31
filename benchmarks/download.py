"""How fast models are fetched and proven, and what becomes of them when everything goes wrong.

    python benchmarks/download.py --json
    python benchmarks/download.py --gigabytes 1 --rounds 3 --faults 50 --kills 3

A hub on loopback, in a process of its own, serves a model of random bytes in four files. It is fetched by BitingLip
(looked up, hashed while it streams, synced to the disk, registered) and by huggingface_hub's `snapshot_download` (which
does not hash), each time in a new process and into an empty folder, in turn. Ratios are of medians; above 1 BitingLip
is faster. Hashing what is there is compared with `sha256sum`, one core each. Then small models are fetched while
connections are cut, stalled, refused and spoiled by chance, and while the downloading process is killed.
"""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

# This folder's queue.py would hide Python's own; the hub is in the repository's tests.
sys.path[0] = str(REPOSITORY)

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from bitinglip.domain.models import CopyState, ModelStatus
from bitinglip.embedded import EmbeddedServers, ServerUrls
from bitinglip.errors import BitingLipError
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.downloader import DownloadProgress, ModelDownloader, make_downloader
from bitinglip.registry.hashing import make_manifest_of_folder, verify_files
from bitinglip.registry.hub.client import Hub
from bitinglip.settings import ModelSettings
from bitinglip.store.copies import delete_copies
from bitinglip.store.database import Database
from bitinglip.store.entries import delete_entry, list_entries
from bitinglip.store.migrate import upgrade
from tests.hub import Fault, LocalHub

RESULTS = Path(__file__).parent / "results" / "download.json"
FILES = 4
SMALL_FILE_BYTES = 1_500_000
BLOCK_BYTES = 2**24
PARALLEL_FAULTS = 8
KILLED_FILE_BYTES = 40_000_000
KILLED_BYTES_PER_SECOND = 20_000_000


def main() -> None:
    """Run, print, and keep the result where `--save` is given."""
    options = parse_arguments()
    if options.child:
        print(json.dumps(run_child(*options.child)))
        return
    with (
        tempfile.TemporaryDirectory(prefix="bitinglip-bench-") as name,
        tempfile.TemporaryDirectory(prefix="bitinglip-bench-servers-") as servers,
        EmbeddedServers(Path(servers)) as running,
    ):
        database = Database(running.urls.database_url, connections=2 * PARALLEL_FAULTS)
        upgrade(database)
        result = {
            **measure_speed(Path(name), running.urls, database, options),
            **inject_faults(Path(name), database, options),
            **kill_downloads(Path(name), running.urls, database, options),
            "cpus": os.cpu_count(),
        }
        database.close()
    if options.save:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for key, value in result.items():
        print(f"{key:36} {value}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--save", action="store_true", help=f"also write {RESULTS}")
    parser.add_argument("--gigabytes", type=float, default=5, help="of the model whose speed is measured (5)")
    parser.add_argument("--rounds", type=int, default=5, help="of it by each (5)")
    parser.add_argument("--faults", type=int, default=200, help="to inject, at least (200)")
    parser.add_argument("--kills", type=int, default=10, help="of a downloading process (10)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults (1)")
    parser.add_argument("--child", nargs=2, metavar=("WHO", "NAME"), help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_speed(folder: Path, urls: ServerUrls, database: Database, options: argparse.Namespace) -> dict[str, Any]:
    """Rates of both, the peak of ours, and of hashing."""
    model = make_model(folder / "large", int(options.gigabytes * 1e9) // FILES)
    total_bytes = sum(file.stat().st_size for file in model.iterdir())
    runs: dict[str, list[dict[str, float]]] = {"bitinglip": [], "huggingface_hub": []}
    hashed: dict[str, list[float]] = {"bitinglip": [], "sha256sum": []}
    with running_hub(model) as endpoint:
        for _ in range(options.rounds):
            for who, done in runs.items():
                done.append(fetch_in_child(who, folder / "cache", endpoint, urls))
                shutil.rmtree(folder / "cache")
                forget(database, f"local/{model.name}")
    for _ in range(options.rounds):
        hashed["sha256sum"].append(time_call(lambda: run_sha256sum(model)))
        hashed["bitinglip"].append(time_hashing(model))
    shutil.rmtree(model)
    seconds = {who: statistics.median(run["seconds"] for run in done) for who, done in runs.items()}
    hashing = {who: statistics.median(done) for who, done in hashed.items()}
    return {
        "model_bytes": total_bytes,
        "rounds": options.rounds,
        **{f"{who}_mb_per_second": round(total_bytes / value / 1e6, 1) for who, value in seconds.items()},
        "fetch_ratio": round(seconds["huggingface_hub"] / seconds["bitinglip"], 3),
        **{
            f"{who}_cpu_s_per_gb": round(statistics.median(run["cpu_seconds"] for run in done) / total_bytes * 1e9, 3)
            for who, done in runs.items()
        },
        **{f"{who}_peak_mb": round(max(run["peak_bytes"] for run in done) / 1e6) for who, done in runs.items()},
        "verify_mb_per_second_per_core": round(total_bytes / hashing["bitinglip"] / 1e6, 1),
        "sha256sum_mb_per_second": round(total_bytes / hashing["sha256sum"] / 1e6, 1),
        "verify_ratio": round(hashing["sha256sum"] / hashing["bitinglip"], 3),
    }


def make_model(folder: Path, file_bytes: int, seed: int | None = None) -> Path:
    """A model that is refused for nothing: files of random bytes that are safetensors, and a config."""
    dice = random.Random(seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    names = [f"model-{number:05}-of-{FILES:05}.safetensors" for number in range(1, FILES + 1)]
    for number, name in enumerate(names):
        entry = {"dtype": "U8", "shape": [file_bytes], "data_offsets": [0, file_bytes]}
        header = json.dumps({f"weight.{number}": entry}).encode()
        with (folder / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for start in range(0, file_bytes, BLOCK_BYTES):
                size = min(BLOCK_BYTES, file_bytes - start)
                file.write(os.urandom(size) if seed is None else dice.randbytes(size))
    weight_map = {f"weight.{number}": name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@contextmanager
def running_hub(model: Path) -> Iterator[str]:
    """The endpoint of a hub that serves a folder from a process of its own."""
    command = [sys.executable, "-m", "tests.hub", str(model)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip().removeprefix("HF_ENDPOINT=")
        finally:
            process.terminate()


def fetch_in_child(who: str, cache: Path, endpoint: str, urls: ServerUrls) -> dict[str, float]:
    """What one of them took for the model, in a process that does nothing else."""
    # What the other one has written may still be on its way to the disk.
    os.sync()
    command = [sys.executable, __file__, "--child", who, "local/large"]
    environment = make_environment(cache, endpoint, urls)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def make_environment(cache: Path, endpoint: str, urls: ServerUrls) -> dict[str, str]:
    """Of a process that fetches."""
    return {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "BITINGLIP_NODE": "bench",
        "BITINGLIP_DATABASE_URL": urls.database_url,
        "BITINGLIP_REDIS_URL": urls.redis_url,
    }


def run_child(who: str, name: str) -> dict[str, float]:
    """Fetch a model in this process, and say what it took."""
    fetch = start_bitinglip(name) if who == "bitinglip" else start_huggingface_hub(name)
    cpu = time.process_time()
    seconds = time_call(fetch)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": int(status["VmHWM"].split()[0]) * 1024,
    }


def start_bitinglip(name: str) -> Callable[[], object]:
    """What fetches it our way. The first byte of it is said on stderr: from then on it may be killed."""
    database = Database(os.environ["BITINGLIP_DATABASE_URL"])
    downloader = make_downloader(database)
    said = threading.Event()

    def tell(progress: DownloadProgress) -> None:
        if progress.files and not said.is_set():
            said.set()
            sys.stderr.write("begun\n")

    tell_killer = "BITINGLIP_BENCH_KILLS" in os.environ
    return lambda: downloader.bring(name, stop=threading.Event(), on_progress=tell if tell_killer else lambda _: None)


def start_huggingface_hub(name: str) -> Callable[[], object]:
    """What fetches it huggingface_hub's way."""
    from huggingface_hub import snapshot_download

    return lambda: snapshot_download(name)


def time_call(call: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def run_sha256sum(model: Path) -> None:
    """Have it hash the model's weights."""
    subprocess.run(["sha256sum", *map(str, model.glob("*.safetensors"))], stdout=subprocess.DEVNULL, check=True)


def time_hashing(model: Path) -> float:
    """Seconds that one thread takes to prove the same files."""
    manifest = make_manifest_of_folder(model)
    weights = [file for file in manifest.files if file.path.endswith(".safetensors")]
    bad: list[object] = []
    seconds = time_call(lambda: bad.extend(verify_files(lambda file: model / file.path, weights, threads=1)))
    assert not bad
    return seconds


def forget(database: Database, name: str) -> None:
    """Have a model looked up anew."""
    with database.transaction() as connection:
        delete_copies(connection, name)
        delete_entry(connection, name)


def inject_faults(folder: Path, database: Database, options: argparse.Namespace) -> dict[str, Any]:
    """Fetch small models while things go wrong, until enough has: how each ended."""
    model = make_model(folder / "small", SMALL_FILE_BYTES, seed=options.seed)
    endings: Counter[str] = Counter()
    applied: Counter[str] = Counter()

    def run(number: int) -> None:
        if sum(applied.values()) >= options.faults:
            return
        ending, faults = fetch_with_faults(number, options.seed, model, folder / f"cache-{number}", database)
        endings[ending] += 1
        applied.update(faults)

    with ThreadPoolExecutor(PARALLEL_FAULTS) as pool:
        list(pool.map(run, range(10 * options.faults)))
    shutil.rmtree(model)
    return {
        "faults_injected": sum(applied.values()),
        "faults_by_kind": dict(sorted(applied.items())),
        "faulty_downloads": sum(endings.values()),
        "faulty_downloads_by_ending": dict(sorted(endings.items())),
        "faulty_downloads_unproven": endings["wrong bytes"] + endings["error without a record"],
    }


def fetch_with_faults(number: int, seed: int, model: Path, cache: Path, database: Database) -> tuple[str, list[str]]:
    """How one download ended, and which faults it met."""
    dice = random.Random(f"{seed} {number}")
    name = f"local/faulty-{number}"
    settings = ModelSettings(model_spare_bytes=0, download_stall_seconds=0.3)
    faults = [make_fault(dice) for _ in range(dice.randrange(1, 4))]
    with LocalHub() as hub:
        hub.add_repo(name, model)
        for _, fault in faults:
            hub.faults.add(fault)
        asked = Hub(endpoint=hub.url, stall_seconds=settings.download_stall_seconds)
        downloader = ModelDownloader(
            database, node=f"node-{number}", cache=ModelCache(cache), hub=asked, settings=settings
        )
        try:
            downloader.bring(name, stop=threading.Event())
            ending = "proven" if is_proven(database, name) else "wrong bytes"
        except BitingLipError as exc:
            ending = exc.code if is_unavailable(database, name) else "error without a record"
    shutil.rmtree(cache, ignore_errors=True)
    return ending, [kind for kind, fault in faults for _ in range(fault.applied)]


def make_fault(dice: random.Random) -> tuple[str, Fault]:
    """Anything that can go wrong with a request, and what it is called."""
    at = dice.randrange(1, SMALL_FILE_BYTES)
    status = dice.choice([401, 403, 404, 429, 500, 503])
    choices: dict[str, Callable[[], Fault]] = {
        "cut": lambda: Fault(kind="cdn", cut_after_bytes=at),
        "no reply": lambda: Fault(kind=dice.choice(["cdn", "resolve", "api"]), cut_after_bytes=0),
        "wrong byte": lambda: Fault(kind="cdn", flip_at_byte=at),
        "wrong byte of a config": lambda: Fault(kind="resolve", path="*.json", flip_at_byte=1),
        "too long": lambda: Fault(kind="cdn", length_off_by=at),
        "too short": lambda: Fault(kind="cdn", length_off_by=-at),
        "stall": lambda: Fault(kind="cdn", stall_after_bytes=dice.choice([0, at])),
        "slow": lambda: Fault(kind="cdn", bytes_per_second=2_000_000),
        "status": lambda: Fault(kind=dice.choice(["cdn", "resolve"]), status=status, retry_after_seconds=1),
        "status of the api": lambda: Fault(kind="api", status=status),
        "gated": lambda: Fault(kind="resolve", status=403, error_code="GatedRepo"),
    }
    kind = dice.choice(list(choices))
    fault = choices[kind]()
    fault.times = dice.choice([1, 1, 1, 2, None])
    return kind, fault


def is_proven(database: Database, name: str) -> bool:
    """Whether it is registered as available, and each of its bytes is what its manifest says."""
    with database.statement() as connection:
        (entry,) = list_entries(connection, [name])
    manifest, (copy,) = entry.record.manifest, entry.copies
    folder = Path(copy.folder)
    return (
        entry.status is ModelStatus.AVAILABLE
        and manifest is not None
        and all(
            hashlib.sha256((folder / f.path).read_bytes()).hexdigest() == f.sha256 for f in manifest.files if f.sha256
        )
        and not verify_files(lambda file: folder / file.path, manifest.files)
    )


def is_unavailable(database: Database, name: str) -> bool:
    """Whether nobody would use it."""
    with database.statement() as connection:
        entries = list_entries(connection, [name])
    return not any(copy.state is CopyState.AVAILABLE for entry in entries for copy in entry.copies)


def kill_downloads(folder: Path, urls: ServerUrls, database: Database, options: argparse.Namespace) -> dict[str, Any]:
    """Kill a downloading process in the middle, and go on in another: what has been fetched twice."""
    model = make_model(folder / "killed", KILLED_FILE_BYTES)
    dice = random.Random(options.seed)
    again: list[int] = []
    for _ in range(options.kills):
        with LocalHub(bytes_per_second=KILLED_BYTES_PER_SECOND) as hub:
            hub.add_repo("local/killed", model)
            environment = make_environment(folder / "cache", hub.url, urls)
            kill_in_the_middle(environment, dice.uniform(0.1, 1.2))
            hub.bytes_per_second = None
            finish = [sys.executable, __file__, "--child", "bitinglip", "local/killed"]
            subprocess.run(finish, env=environment, stdout=subprocess.DEVNULL, check=True)
            assert is_proven(database, "local/killed")
            sent = (hub.requests.sent_bytes("cdn", f"*/{file.name}") for file in model.glob("*.safetensors"))
            again += [total - next(model.glob("*.safetensors")).stat().st_size for total in sent]
        shutil.rmtree(folder / "cache")
        forget(database, "local/killed")
    shutil.rmtree(model)
    return {"kills": options.kills, "bytes_a_file_fetched_again_max": max(again, default=None)}


def kill_in_the_middle(environment: dict[str, str], seconds: float) -> None:
    """Have a process fetch a model, and kill it so long after its first byte."""
    command = [sys.executable, __file__, "--child", "bitinglip", "local/killed"]
    own = {**environment, "BITINGLIP_BENCH_KILLS": "1"}
    with subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "begun\n"
        time.sleep(seconds)
        process.kill()


if __name__ == "__main__":
    main()
