#!/usr/bin/env bash
# Sets up one machine: Python, the requirements, jax for its accelerator, and growlm from this checkout, in .venv.
# A TPU VM comes with Python 3.10, which growlm does not run on; uv brings a newer one without touching the system's.
# Run again it only adds what is missing. On a TPU slice of several machines run it on all of them at once
# (tpu.sh setup, or SkyPilot does): the check at the end waits for the others.
#
#   PYTHON   which Python, 3.11 to 3.14                                   default 3.12
#   EXTRA    jax's own extra for the accelerator: tpu, cuda13, cuda12     default tpu
#   EXTRAS   growlm's extras, such as data,eval                           default data
#   NFS      SERVER:/SHARE, to be mounted at MOUNT on every machine       default none
#   MOUNT    where                                                        default /mnt/growlm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PYTHON=${PYTHON:-3.12}
EXTRA=${EXTRA:-tpu}
EXTRAS=${EXTRAS:-data}
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
uv pip install --quiet --python .venv/bin/python -r requirements.txt "jax[$EXTRA]" --editable ".[$EXTRAS]"

if [ -n "$NFS" ] && ! mountpoint --quiet "$MOUNT"; then
    # In its first minutes a machine updates itself, and holds the lock.
    wait_for_lock=(-o DPkg::Lock::Timeout=600)
    sudo apt-get "${wait_for_lock[@]}" --quiet update
    sudo apt-get "${wait_for_lock[@]}" --quiet --yes install nfs-common
    sudo mkdir -p "$MOUNT"
    # After maintenance, too: an empty folder of each machine's own would take its place.
    grep --quiet --fixed-strings " $MOUNT " /etc/fstab || echo "$NFS $MOUNT nfs defaults,_netdev 0 0" | sudo tee -a /etc/fstab
    sudo mount "$MOUNT"
    [ -w "$MOUNT" ] || sudo chmod a+rwx "$MOUNT"
fi

.venv/bin/python - "$EXTRA" <<'CHECK'
import sys

import jax

from growlm.errors import InputError
from growlm.training.processes import join_processes

try:
    join_processes()  # a slice may be several machines, and the device count is of all of them
except InputError as error:
    sys.exit(f"setup: {error}")
if jax.default_backend() == "cpu":
    sys.exit(f"setup: jax[{sys.argv[1]}] sees no accelerator, only {jax.device_count()} CPU device")
print(
    f"setup: process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
    f"{jax.device_count()} devices, {jax.devices()[0].device_kind}, jax {jax.__version__}"
)
CHECK
