#!/usr/bin/env bash
# A TPU VM, or a slice of several, from a machine with gcloud and this checkout:
#
#   experiments/tpu/tpu.sh create                                    a TPU
#   experiments/tpu/tpu.sh setup                                     the commit HEAD and all it needs, on every worker
#   experiments/tpu/tpu.sh run train --config=... --workdir=...      `growlm train ...` on every worker, in the background
#   experiments/tpu/tpu.sh log                                       what it prints, on every worker
#   experiments/tpu/tpu.sh stop                                      tells it to save and leave
#   experiments/tpu/tpu.sh delete                                    the TPU, which costs until then
#
#   TPU_NAME, ZONE           its name, and where                                  always needed
#   PROJECT                  the Google Cloud project                             default gcloud's own
#   ACCELERATOR_TYPE         such as v5litepod-8, v4-32 or v6e-16                 for create
#   RUNTIME_VERSION          v2-alpha-tpuv6e, v2-alpha-tpuv5 (v5p), v2-alpha-tpuv5-lite (v5e), tpu-ubuntu2204-base (v4)
#   CREATE_FLAGS             more for create, such as --spot                      default none
#   PYTHON, NFS, MOUNT       for setup, see setup.sh
set -euo pipefail

: "${TPU_NAME:?set TPU_NAME to the name of the TPU}"
: "${ZONE:?set ZONE to its zone, such as us-central2-b}"
WHERE=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})

on_all() {
    gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${WHERE[@]}" --worker=all --command="$1"
}

create() {
    : "${ACCELERATOR_TYPE:?set ACCELERATOR_TYPE, such as v5litepod-8}"
    : "${RUNTIME_VERSION:?set RUNTIME_VERSION, such as v2-alpha-tpuv5-lite}"
    # shellcheck disable=SC2086  # CREATE_FLAGS is several words
    gcloud compute tpus tpu-vm create "$TPU_NAME" "${WHERE[@]}" \
        --accelerator-type="$ACCELERATOR_TYPE" --version="$RUNTIME_VERSION" ${CREATE_FLAGS:-}
}

# A bundle is the repository in one file: no access to a server is needed, and sweep.json can name the commit.
setup() {
    local bundle settings
    bundle=$(mktemp -d)/growlm.bundle
    git -C "$(dirname "${BASH_SOURCE[0]}")" bundle create --quiet "$bundle" HEAD
    gcloud compute tpus tpu-vm scp "$bundle" "$TPU_NAME:growlm.bundle" "${WHERE[@]}" --worker=all
    rm -r "$(dirname "$bundle")"
    settings=$(printf '%q ' "PYTHON=${PYTHON:-}" "NFS=${NFS:-}" "MOUNT=${MOUNT:-}")
    on_all "set -e; git init --quiet growlm; git -C growlm fetch --quiet ../growlm.bundle HEAD
        git -C growlm checkout --quiet --detach FETCH_HEAD; env $settings bash growlm/experiments/tpu/setup.sh"
}

run() {
    local arguments
    arguments=$(printf '%q ' "$@")
    on_all "cd growlm; nohup .venv/bin/growlm $arguments >~/growlm.log 2>&1 </dev/null & echo \$! >~/growlm.pid"
}

case ${1:-} in
    create | setup) "$1" ;;
    run) [ $# -gt 1 ] || { echo "tpu: run needs a command of growlm, such as: run train --config=..." >&2; exit 2; }
        run "${@:2}" ;;
    log) on_all "tail -n 20 growlm.log" ;;
    stop) on_all "kill -TERM \$(cat growlm.pid)" ;;
    delete) gcloud compute tpus tpu-vm delete "$TPU_NAME" "${WHERE[@]}" ;;
    *) echo "tpu: ${1:-no command}: allowed are create, setup, run, log, stop and delete" >&2; exit 2 ;;
esac
