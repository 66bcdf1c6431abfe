#!/bin/sh
# Starts tritonserver on the model repository, with the flags that tools/serve.py gives it. Arguments go to tritonserver
# after ours, so that they win. Traces go where OpenTelemetry's OTEL_EXPORTER_OTLP_ENDPOINT says; without it there are none.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
state=${TMPDIR:-/tmp}/tiny-sd

if [ -n "${OTEL_EXPORTER_OTLP_ENDPOINT:-}" ]; then
    set -- --trace-config=mode=opentelemetry \
        --trace-config=opentelemetry,url="${OTEL_EXPORTER_OTLP_ENDPOINT%/}/v1/traces" \
        --trace-config=opentelemetry,resource=service.name=tiny-sd-triton \
        --trace-config=level=TIMESTAMPS \
        --trace-config=rate=1 \
        "$@"
fi
if ! "$root/deploy/docker/has-gpu.sh"; then
    set -- --allow-gpu-metrics=false "$@"
fi

# Triton's APIs for operators need neither keys nor rights by themselves: whoever reaches a port could read other callers'
# shared memory or change what is served and logged. Who is to use them gets TINY_SD_ADMIN_KEY.
random() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
closed=shared-memory,model-repository,logging,trace:admin-key=${TINY_SD_ADMIN_KEY:-$(random)}

# What check-triton.sh needs to know. The process id stays the same across exec.
rm -rf "$state"
mkdir -p "$state"
echo $$ >"$state/pid"

# Completing configurations that are complete would start every stage twice. Streams hold a thread of the Python backend
# each.
exec tritonserver \
    --model-repository="$root/model_repository" \
    --disable-auto-complete-config \
    --backend-config=python,thread-pool-size=256 \
    --exit-timeout-secs=30 \
    --grpc-restricted-protocol="$closed" \
    --http-restricted-api="$closed" \
    "$@"
