#!/usr/bin/env bash
# pyperf 2.9.0 (PyPI) on Linux: the memory that `pyperf command` reports of a program, `command_max_rss`, is at least what
# pyperf's own worker has resident, so that every small program seems to take the same. It reads `ru_maxrss` of
# getrusage, and Linux counts into that what the process held before it became the program: exec keeps it, and a child
# has its parent's memory until then. VmHWM in /proc/self/status begins anew with the program. Seen with pyperf 2.9.0,
# CPython 3.11 and Linux 6.18. Source: pyperf/_process_time.py, and this script. Ends with status 0 while this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyperf==2.9.0
"$folder/venv/bin/pip" list --disable-pip-version-check 2>/dev/null | grep -iE "^pyperf "
uname -sr

program=(grep VmHWM /proc/self/status) # prints the most that it has had resident itself
own=$("${program[@]}" | grep -oE "[0-9]+")
"$folder/venv/bin/python" -m pyperf command --quiet --processes 1 --values 1 --loops 1 --warmups 0 \
  --output "$folder/told.json" "${program[@]}" >/dev/null
told=$("$folder/venv/bin/python" -c "
import pyperf, sys
print(pyperf.BenchmarkSuite.load(sys.argv[1]).get_benchmarks()[0].get_metadata()['command_max_rss'] // 1024)" "$folder/told.json")
echo "most memory of '${program[*]}': about $own kB expected, as it says itself; pyperf says $told kB"
[[ "$told" -gt $((2 * own)) ]]
