"""The S3 driver against raw boto3: a 500 MB file up and down, on one real server, in turn.

    PYTHONPATH=tests/support python tests/benchmarks/bench_store.py

Raw is boto3's own multipart transfer of the same file with as many threads and parts of the same size. The
driver hashes every byte besides. Bound: at least 0.8 of raw throughput each way (medians). Exits 1 below.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from boto3.s3.transfer import TransferConfig

from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store.cache import THREADS, download
from resprout.infra.store.manifest import CHUNK_BYTES, scan
from resprout.infra.store.s3 import S3Driver
from servers import s3_server

SIZE, ROUNDS, BOUND = 500_000_000, 3, 0.8


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> int:
    transfer = TransferConfig(
        multipart_threshold=CHUNK_BYTES, multipart_chunksize=CHUNK_BYTES, max_concurrency=THREADS
    )
    seconds: dict[str, list[float]] = {"up raw": [], "up driver": [], "down raw": [], "down driver": []}
    with s3_server() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "made").mkdir()
        (folder / "made" / "weights.bin").write_bytes(random.Random(3).randbytes(SIZE // 10) * 10)
        manifest = scan(folder / "made")
        driver = S3Driver.from_config(StoreConfig(**server.settings(uuid.uuid4().hex)))
        client, bucket = driver.client, driver.bucket
        local, target = str(folder / "made" / "weights.bin"), str(folder / "raw.bin")
        for index in range(ROUNDS):
            raw, own = f"raw/{index}", f"own-{index}"
            seconds["up raw"].append(
                timed(lambda key=raw: client.upload_file(local, bucket, key, Config=transfer))
            )
            seconds["up driver"].append(
                timed(lambda key=own: driver.put_folder(key, folder / "made", manifest, force=False))
            )
            seconds["down raw"].append(
                timed(lambda key=raw: client.download_file(bucket, key, target, Config=transfer))
            )
            (folder / own).mkdir()
            seconds["down driver"].append(
                timed(lambda key=own: download(driver, key, manifest, folder / key))
            )
            (folder / own / "weights.bin").unlink()
            client.delete_object(Bucket=bucket, Key=raw)
            driver.delete(f"{own}/weights.bin")
    speed = {name: SIZE / 1e6 / statistics.median(found) for name, found in seconds.items()}
    low = 0
    for way in ("up", "down"):
        ratio = speed[f"{way} driver"] / speed[f"{way} raw"]
        low += ratio < BOUND
        print(
            f"S3 {way}: driver {speed[f'{way} driver']:.0f} MB/s, raw boto3 {speed[f'{way} raw']:.0f} MB/s, "
            f"ratio {ratio:.2f} (bound {BOUND})"
        )
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
