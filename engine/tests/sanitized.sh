#!/usr/bin/env bash
# Builds the engine with sanitizers beside the ordinary one and runs its tests: sanitized.sh PYTHON SANITIZERS LIBRARY TESTS...
# The interpreter itself is not instrumented, so the sanitizer's library is loaded before it, and with it the
# library whose exceptions it watches.
set -euo pipefail
python=$1 sanitizers=$2 library=$3
shift 3
cd "$(dirname "$0")/.."
build=build/sanitized-${sanitizers%%,*}
cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSKIPNETS_SANITIZE="$sanitizers" \
    -DPython_EXECUTABLE="$python" -Dnanobind_DIR="$("$python" -m nanobind --cmake_dir)" > /dev/null
cmake --build "$build" --parallel
mkdir -p "$build/package/skipnets_engine"
cp skipnets_engine/*.py "$build"/_engine*.so "$build/package/skipnets_engine/"
# Python leaks on purpose at exit; the engine's pool outlives main. -P: the package built here, not the sources in
# this folder, which lack the compiled part.
LD_PRELOAD="$(c++ -print-file-name="$library") $(c++ -print-file-name=libstdc++.so)" PYTHONPATH=$build/package \
    ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS="halt_on_error=1 report_thread_leaks=0 suppressions=$PWD/tests/tsan.supp" \
    "$python" -P -m pytest "$@" -q -p no:cacheprovider
