#!/usr/bin/env bash
# Sets up one machine: Python, the requirements, jax for its accelerator, and growlm from this checkout, in .venv.
# A TPU VM comes with Python 3.10, which growlm does not run on; uv brings a newer one without touching the system's.
# Run again it only adds what is missing. On a TPU slice of several machines run it on all of them at once
# (tpu.sh setup): the check at the end waits for the others.
#
#   PYTHON   which Python, 3.11 to 3.14                                   default 3.12
#   EXTRA    jax's own extra for the accelerator: tpu, cuda13, cuda12     default tpu
#   NFS      SERVER:/SHARE, to be mounted at MOUNT on every machine       default none
#   MOUNT    where                                                        default /mnt/growlm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PYTHON=${PYTHON:-3.12}
EXTRA=${EXTRA:-tpu}
NFS=${NFS:-}
MOUNT=${MOUNT:-/mnt/growlm}

case $PYTHON in
    3.11 | 3.12 | 3.13 | 3.14) ;;
    *) echo "setup: PYTHON must be 3.11 to 3.14, got $PYTHON" >&2; exit 2 ;;
esac

export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
[ -x .venv/bin/python ] || uv venv --quiet --python "$PYTHON" .venv
# In one call, so that jax and the plugin of its extra are chosen together.
uv pip install --quiet --python .venv/bin/python -r requirements.txt "jax[$EXTRA]" --editable .

if [ -n "$NFS" ] && ! mountpoint --quiet "$MOUNT"; then
    sudo apt-get install --yes --quiet nfs-common
    sudo mkdir -p "$MOUNT"
    sudo mount -t nfs "$NFS" "$MOUNT"
    sudo chmod a+rwx "$MOUNT"
fi

.venv/bin/python - "$EXTRA" <<'CHECK'
import sys

import jax

if sys.argv[1] == "tpu":  # a slice may be several machines, and the device count is of all of them
    try:
        jax.distributed.initialize()
    except ValueError as error:
        sys.exit(f"setup: this is no TPU VM: {error}")
if jax.default_backend() == "cpu":
    sys.exit(f"setup: jax[{sys.argv[1]}] sees no accelerator, only {jax.device_count()} CPU device")
print(
    f"setup: process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
    f"{jax.device_count()} devices, {jax.devices()[0].device_kind}, jax {jax.__version__}"
)
CHECK
