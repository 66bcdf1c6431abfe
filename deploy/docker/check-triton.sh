#!/bin/sh
# The container's health check: draws a picture, on a CPU as far as its first step. Triton itself goes on calling itself
# ready when a model's process is dead. Docker only marks a container that is not healthy and leaves it as it is, so the
# second failure in a row ends Triton, and the restart policy starts it anew. While it starts, failures do not count.
set -eu
state=${TMPDIR:-/tmp}/tiny-sd
whole=""
if "$(dirname "$0")/has-gpu.sh"; then
    whole=--whole
fi

if timeout 50 tiny-sd check --url grpc://localhost:8001 --timeout 45 ${whole:+"$whole"}; then
    echo 0 >"$state/failures"
    exit 0
fi
if [ -e "$state/failures" ]; then
    failures=$(($(cat "$state/failures") + 1))
    echo "$failures" >"$state/failures"
    if [ "$failures" -ge 2 ]; then
        kill -KILL "$(cat "$state/pid")"
    fi
fi
exit 1
