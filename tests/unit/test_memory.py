"""Memory of large tensors, in processes of their own: the settings hold for a whole process."""

from __future__ import annotations

import os
import subprocess
import sys

_RESIDENT = """
import mmap
import re
from pathlib import Path

import torch

from tiny_sd_engine import device, memory

def mib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

def make_and_drop():
    torch.ones(128 * 2**20, dtype=torch.uint8)
"""


def run(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _RESIDENT + script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torch_asks_for_large_pages_unless_the_operator_does_not_want_them() -> None:
    """torch begins a tensor with a page then; whether the kernel has large ones is another matter."""
    script = "print(torch.empty(2**23, dtype=torch.uint8).data_ptr() % mmap.PAGESIZE)"
    assert run(script) == "0\n"
    assert run(script, THP_MEM_ALLOC_ENABLE="0") != "0\n"


def test_what_is_freed_stays_until_it_is_to_be_handed_back() -> None:
    script = """
memory.keep(False)
make_and_drop()
print(before := mib())
memory.keep(True)
make_and_drop()
print(mib() - before)
memory.keep(False)
print(mib() - before)
make_and_drop()
print(mib() - before)
"""
    _, kept, handed_back, never_kept = map(int, run(script).split())
    assert kept > 100
    assert handed_back < 20
    assert never_kept < 20


def test_memory_that_other_threads_freed_is_kept_once_for_all() -> None:
    """Now and then a piece that was freed is a little too small for the next, as it has to begin with a page."""
    script = """
from threading import Thread

memory.keep(True)
before = mib()
for _ in range(12):
    thread = Thread(target=make_and_drop)
    thread.start()
    thread.join()
print(mib() - before)
"""
    assert 100 < int(run(script)) < 12 * 128 / 3


def test_memory_taken_ahead_costs_none_until_it_is_used_and_holds_the_next_tensors() -> None:
    script = """
memory.keep(True)
before = mib()
memory.take_ahead(512 * 2**20)
print(mib() - before)
tensors = [torch.ones(2**20, dtype=torch.uint8) for _ in range(256)]
print(mib() - before)
mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M)
ends = [re.match("(.+?)-(.+?) ", mapping).groups() for mapping in mappings if re.search("VmFlags:.* hg", mapping)]
advised = [range(int(first, 16), int(last, 16)) for first, last in ends]
print(sum(any(tensor.data_ptr() in each for each in advised) for tensor in tensors))
"""
    ahead, used, advised = map(int, run(script).split())
    assert ahead < 4
    assert 250 < used < 300
    assert advised > 250
    advised_without = run(script, THP_MEM_ALLOC_ENABLE="0").split()[2]
    assert int(advised_without) == 0
