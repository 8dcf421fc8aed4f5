"""Drops from an array that is larger than the memory that the process may use, in blocks of Dask,
and shows that the blocks are slices of one mask."""

import argparse
import resource
from collections.abc import Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np

import fastdrop

RATE, SEED, COLUMNS = 0.2, 7, 1024
ROWS_OF_A_BLOCK = 2**13  # 32 MiB of float32


def drop(block: np.ndarray, block_info: Any = None) -> np.ndarray:
    """Return the block's part of the dropout of the whole array; of a gradient too."""
    [(first_row, _), *_] = block_info[0]["array-location"]
    offset = first_row * COLUMNS
    return fastdrop.draw_mask(block.shape, RATE, seed=SEED, offset=offset).apply(block)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 GiB in 1 GiB, not 8 GiB in 2 GiB")
    options = parser.parse_args(arguments)
    size, limit = (2**31, 2**30) if options.quick else (2**33, 2**31)

    # An allocation beyond the limit raises MemoryError.
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    fastdrop.set_num_threads(1)  # Dask's two threads take a block each
    shape = (size // np.float32().nbytes // COLUMNS, COLUMNS)
    x = da.ones(shape, np.float32, chunks=(ROWS_OF_A_BLOCK, COLUMNS))
    y = x.map_blocks(drop, dtype=np.float32)
    with dask.config.set(scheduler="threads", num_workers=2):
        kept, mean = dask.compute((y != 0).sum(), y.mean(dtype=np.float64))
        last_rows = y[-3:].compute()

    whole = fastdrop.draw_mask(shape, RATE, seed=SEED, store_mask=False)
    print(f"{size / 2**30:.0f} GiB in {x.npartitions} blocks, with {limit / 2**30:.0f} GiB of data")
    print(f"kept by the blocks: {kept:,}, mean of the result: {mean:.5f}")
    print(f"kept by one mask:   {whole.count():,}")
    same = np.array_equal(last_rows, whole[-3:] * np.float32(whole.scale))
    print(f"the last rows are {'' if same else 'not '}those of the mask")


if __name__ == "__main__":
    main()
