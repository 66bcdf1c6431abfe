#!/bin/sh
# Makes the secrets that docker-compose.yml mounts, from random numbers. Those that are there stay as they are.
set -eu
folder=$(dirname "$0")/secrets
umask 077
mkdir -p "$folder"

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# Containers read the files as users of their own, so the files are for everybody, and the folder only for you.
keep() {
    [ -e "$folder/$1" ] && return
    printf '%s' "$2" >"$folder/$1.new"
    chmod 444 "$folder/$1.new"
    mv "$folder/$1.new" "$folder/$1"
    echo "made $folder/$1"
}

keep postgres_password "$(random)"
keep database_url "postgresql://gateway:$(cat "$folder/postgres_password")@postgres/gateway"
keep grafana_admin_password "$(random)"
