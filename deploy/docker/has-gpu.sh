#!/bin/sh
# Whether NVIDIA's driver shows a GPU (/dev/dxg: that of Windows, under WSL); asked without loading CUDA, as tools/serve.py does.
devices=${1:-/dev}
for device in "$devices"/nvidia[0-9]* "$devices"/dxg; do
    [ -e "$device" ] && exit 0
done
exit 1
