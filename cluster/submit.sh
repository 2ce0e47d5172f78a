#!/usr/bin/env bash
# Submits a run to a Ray cluster and follows its log.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: cluster/submit.sh CONFIG [KEY=VALUE]... [--resume] [--run-dir DIR]

Runs `raft-ray run` with these arguments on the cluster that RAY_ADDRESS names. Paths are the cluster's; the files
of this checkout go along, so a config file or prompt may be named as it is here.

environment:
  RAY_ADDRESS      the dashboard, such as http://127.0.0.1:8265
  RAY_AUTH_MODE    must be token
  RAY_AUTH_TOKEN   the cluster's token; or a file: RAY_AUTH_TOKEN_PATH, by default ~/.ray/auth_token

example:
  export RAY_ADDRESS=http://127.0.0.1:8265 RAY_AUTH_MODE=token RAY_AUTH_TOKEN=...
  cluster/submit.sh cluster data.train=/mnt/shared/train.jsonl run.dir=/mnt/shared/runs/first
TEXT
}

fail() {
    echo "error: $1" >&2
    exit 2
}

case "${1:-}" in
    -h | --help) usage && exit 0 ;;
    "") usage >&2 && exit 2 ;;
esac

cd "$(dirname "$0")/.."
[ -n "${RAY_ADDRESS:-}" ] || fail "RAY_ADDRESS is not set: export the cluster's dashboard, such as http://127.0.0.1:8265"
case "$RAY_ADDRESS" in
    http://* | https://*) ;;
    *) fail "RAY_ADDRESS=$RAY_ADDRESS: jobs go to the dashboard, such as http://127.0.0.1:8265" ;;
esac
[ "${RAY_AUTH_MODE:-}" = token ] || fail "RAY_AUTH_MODE must be token: export RAY_AUTH_MODE=token"
if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -s "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ]; then
    fail "no token: export RAY_AUTH_TOKEN, or write it to ${RAY_AUTH_TOKEN_PATH:-~/.ray/auth_token}"
fi

ray=ray
[ ! -x .venv/bin/ray ] || ray=.venv/bin/ray
command -v "$ray" >/dev/null || fail "ray is not installed here: run make env"

# What a run does not need there; Ray leaves out what .gitignore names by itself.
environment='{"excludes": [".git", "tests", "docs"]}'
exec "$ray" job submit --working-dir . --runtime-env-json "$environment" -- python -m raft_ray run "$@"
