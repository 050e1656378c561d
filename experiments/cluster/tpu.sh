#!/usr/bin/env bash
# TPU VMs by a queued resource: one slice or several, each of one machine or more. From a machine with gcloud and this checkout:
#
#   experiments/cluster/tpu.sh create                                asks for the TPU: it comes when there is one
#   experiments/cluster/tpu.sh state                                 WAITING_FOR_RESOURCES, ..., ACTIVE; SUSPENDED: taken away
#   experiments/cluster/tpu.sh setup                                 the commit HEAD and all it needs, on every machine
#   experiments/cluster/tpu.sh run train --config=... --workdir=...  `growlm train ...` on every machine, in the background
#   experiments/cluster/tpu.sh log                                   what it prints, on every machine
#   experiments/cluster/tpu.sh stop                                  tells it to save and leave
#   experiments/cluster/tpu.sh delete                                the TPU, which costs until then, and the request
#
#   TPU_NAME, ZONE           its name, and where                                  always needed
#   PROJECT                  the Google Cloud project                             default gcloud's own
#   SLICES                   slices of one run                                    default 1
#   ACCELERATOR_TYPE         such as v5litepod-8, v4-32 or v6e-16                 for create
#   RUNTIME_VERSION          v2-alpha-tpuv6e, v2-alpha-tpuv5 (v5p), v2-alpha-tpuv5-lite (v5e), tpu-ubuntu2204-base (v4)
#   CREATE_FLAGS             more for create, such as --spot                      default none
#   HAND_ON                  variables that `run` hands on, such as "HF_TOKEN WANDB_API_KEY JAX_COORDINATOR_PORT"
#   PYTHON, EXTRAS, NFS, MOUNT    for setup, see setup.sh
set -euo pipefail

: "${TPU_NAME:?set TPU_NAME to the name of the TPU}"
: "${ZONE:?set ZONE to its zone, such as us-central2-b}"
WHERE=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})
SLICES=${SLICES:-1}
NAMES=("$TPU_NAME")
if [ "$SLICES" -gt 1 ]; then
    NAMES=()
    for ((slice = 0; slice < SLICES; slice++)); do NAMES+=("$TPU_NAME-$slice"); done
fi

queued() {
    gcloud compute tpus queued-resources "$1" "$TPU_NAME" "${WHERE[@]}" "${@:2}"
}

# On all machines of all slices at the same time: the check of setup waits for the others.
on_all() {
    local name failed=0 started=()
    for name in "${NAMES[@]}"; do
        gcloud compute tpus tpu-vm ssh "$name" "${WHERE[@]}" --worker=all --command="$1" &
        started+=($!)
    done
    for name in "${started[@]}"; do wait "$name" || failed=$?; done
    return "$failed"
}

create() {
    : "${ACCELERATOR_TYPE:?set ACCELERATOR_TYPE, such as v5litepod-8}"
    : "${RUNTIME_VERSION:?set RUNTIME_VERSION, such as v2-alpha-tpuv5-lite}"
    local nodes=(--node-id="$TPU_NAME")
    [ "$SLICES" -eq 1 ] || nodes=(--node-count="$SLICES" --node-prefix="$TPU_NAME")
    # shellcheck disable=SC2086  # CREATE_FLAGS is several words
    queued create "${nodes[@]}" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" \
        ${CREATE_FLAGS:-}
}

# A bundle is the repository in one file: no access to a server is needed, and sweep.json can name the commit.
setup() {
    local bundle settings name root
    root=$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)
    [ -z "$(git -C "$root" status --porcelain)" ] || echo "tpu: what is not committed in $root does not come along" >&2
    bundle=$(mktemp -d)/growlm.bundle
    git -C "$root" bundle create --quiet "$bundle" HEAD
    for name in "${NAMES[@]}"; do
        gcloud compute tpus tpu-vm scp "$bundle" "$name:growlm.bundle" "${WHERE[@]}" --worker=all
    done
    rm -r "$(dirname "$bundle")"
    settings=$(printf '%q ' "PYTHON=${PYTHON:-}" "EXTRAS=${EXTRAS:-}" "NFS=${NFS:-}" "MOUNT=${MOUNT:-}")
    on_all "set -e; git init --quiet growlm; git -C growlm fetch --quiet ../growlm.bundle HEAD
        git -C growlm checkout --quiet --detach FETCH_HEAD; env $settings bash growlm/experiments/cluster/setup.sh"
}

run() {
    local arguments variables="" name
    arguments=$(printf '%q ' "$@")
    for name in ${HAND_ON:-}; do variables+=$(printf '%q ' "$name=${!name:?HAND_ON has $name, which is not set}"); done
    on_all "cd growlm; (trap '' HUP; env $variables .venv/bin/growlm $arguments & echo \$! >~/growlm.pid
        wait \$!; echo \"growlm: ended with \$?\") >>~/growlm.log 2>&1 </dev/null &"
}

case ${1:-} in
    create | setup) "$1" ;;
    state) queued describe --format="value(state.state)" ;;
    run) [ $# -gt 1 ] || { echo "tpu: run needs a command of growlm, such as: run train --config=..." >&2; exit 2; }
        run "${@:2}" ;;
    log) on_all "tail -n 20 growlm.log" ;;
    stop) on_all "kill -TERM \$(cat growlm.pid)" ;;
    delete) queued delete --force ;;
    *) echo "tpu: ${1:-no command}: allowed are create, state, setup, run, log, stop and delete" >&2; exit 2 ;;
esac
