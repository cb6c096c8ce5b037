"""Memory that is freed stays while a network trains, and goes back after."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from idh_lightning.machine import peak_resident_bytes

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")

BLOCK_MB = 100

PROGRAM = f"""
import resource
import psutil
from idh_lightning.machine import freed_memory_kept

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"1" * 4096) * {BLOCK_MB * 256}
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mb():
    return psutil.Process().memory_info().rss / 2**20

start = resident_mb()
print(new_pages(), new_pages())
with freed_memory_kept():
    print(new_pages(), new_pages())
    print(resident_mb() - start)
print(resident_mb() - start)
print(new_pages(), new_pages())
"""


ARENAS = """
import ctypes
import idh_lightning.commands.training

libc = ctypes.CDLL(None)
libc.open_memstream.restype = ctypes.c_void_p
text, size = ctypes.c_char_p(), ctypes.c_size_t()
stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(text.value.decode().count("<heap nr="))
"""


@pytest.mark.slow
def test_all_threads_take_memory_from_one_place_also_those_that_libraries_start_when_imported() -> None:
    untold = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", ARENAS], capture_output=True, text=True, check=True, env=untold)
    assert done.stdout.split() == ["1"]


def test_a_block_is_found_again_inside_and_goes_back_after() -> None:
    untold = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    program = [sys.executable, "-c", PROGRAM]
    said = subprocess.run(program, capture_output=True, text=True, check=True, env=untold).stdout
    before, inside, kept, after, again = ([float(value) for value in line.split()] for line in said.splitlines())
    assert inside[1] < 0.1 * min(before + again + inside[:1])  # pages of whatever size
    assert kept[0] > 0.9 * BLOCK_MB
    assert after[0] < 0.1 * BLOCK_MB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="elsewhere getrusage is asked")
def test_a_process_does_not_count_what_the_one_had_that_began_it() -> None:
    held = np.ones(2**27)  # 1 GiB
    code = "from idh_lightning.machine import peak_resident_bytes; print(peak_resident_bytes())"
    peak = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert 2**23 < peak < held.nbytes / 2
    assert peak_resident_bytes() > held.nbytes


def test_where_the_system_counts_no_peak_that_of_getrusage_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: "Name:\tpython\nVmRSS:\t10 kB\n")
    assert peak_resident_bytes() == 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
