"""Memory of large tensors on a CPU: in large pages, and kept from one picture to the next.

By itself the C library gets the memory of every large tensor from the kernel and hands it back with the tensor. The
kernel clears it each time, page by page; in a VAE decoder that is a third of all the time.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None)
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_ALL = 2**31 - 1
_TRIM_THRESHOLD, _MMAP_MAX = 128 * 2**10, 65536  # glibc's own


def use_large_pages() -> None:
    """Let torch ask for pages of 2 MiB instead of 4 KiB. To be called before the process has its first tensor."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep(kept: bool) -> None:
    """Whether the process keeps the memory that it frees, in one pool for all threads; if not, it is handed back.

    Pieces of many sizes do not fit into each other: a decoder of which all is kept needs up to twice the memory.
    """
    if not hasattr(_libc, "mallopt"):  # another C library than glibc
        return
    _libc.mallopt(_M_ARENA_MAX, 1)
    _libc.mallopt(_M_MMAP_MAX, 0 if kept else _MMAP_MAX)
    _libc.mallopt(_M_TRIM_THRESHOLD, _ALL if kept else _TRIM_THRESHOLD)
    if not kept:
        _libc.malloc_trim(0)
