"""Memory of large tensors on a CPU: in large pages, and kept from one picture to the next.

By itself the C library gets the memory of every large tensor from the kernel and hands it back with the tensor. The
kernel clears it each time, page by page; in a VAE decoder that is a third of all the time.
"""

from __future__ import annotations

import ctypes
import mmap
import os

_libc = ctypes.CDLL(None)
_libc.malloc.restype, _libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
_libc.free.restype, _libc.free.argtypes = None, (ctypes.c_void_p,)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_ALL = 2**31 - 1
_TRIM_THRESHOLD, _MMAP_MAX = 128 * 2**10, 65536  # glibc's own
_LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def use_large_pages() -> None:
    """Let torch ask for pages of 2 MiB instead of 4 KiB. To be called before the process has its first tensor."""
    os.environ.setdefault(_LARGE_PAGES, "1")


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


def take_ahead(size: int) -> None:
    """Have the next ``size`` bytes that the process keeps in large pages, which torch asks for large tensors only.

    To be called when memory is kept. Costs addresses only: pages come when they are first used.
    """
    if os.environ.get(_LARGE_PAGES) != "1" or not hasattr(_libc, "mallopt"):
        return
    if piece := _libc.malloc(size):
        start = -(-piece // mmap.PAGESIZE) * mmap.PAGESIZE
        _libc.madvise(start, (piece + size - start) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
        _libc.free(piece)
