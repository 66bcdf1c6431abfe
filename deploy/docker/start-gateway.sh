#!/bin/sh
# Starts tiny-sd-gateway with the arguments given. The database's URL, which holds a password, may come from a file, as
# secrets do: TINY_SD_GATEWAY_DATABASE_URL_FILE names it.
set -eu
if [ -n "${TINY_SD_GATEWAY_DATABASE_URL_FILE:-}" ]; then
    TINY_SD_GATEWAY_DATABASE_URL=$(cat "$TINY_SD_GATEWAY_DATABASE_URL_FILE")
    export TINY_SD_GATEWAY_DATABASE_URL
    unset TINY_SD_GATEWAY_DATABASE_URL_FILE
fi
exec tiny-sd-gateway "$@"
