"""How many machines the TPU of this one has: what decides whether JAX is asked to find the others.

Where there is one, JAX is not asked: on Colab and Kaggle it finds no cluster, or waits for metadata that nobody serves.
"""

import os
import re
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

from growlm.errors import InputError

# Where the machines of a slice are listed, as GKE, Colab ("localhost") and Kaggle ("local") set it.
WORKERS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
SLICES = "MEGASCALE_NUM_SLICES"
NO_METADATA = "TPU_SKIP_MDS_QUERY"
METADATA_HOST = "GCE_METADATA_IP"  # as JAX has it
TRIES, TIMEOUT_SECONDS = 6, 5


def has_tpu() -> bool:
    """Whether this machine has TPU chips, and the library for them."""
    chips = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(chips) and find_spec("libtpu") is not None


def host_count() -> int:
    """The number of machines of all slices: by the environment where it names them, else by Google's metadata server.

    Raises InputError where that server is there and does not answer: a machine that took itself to be alone would
    write into the folder of the others.
    """
    listed = next((value for name in WORKERS if (value := os.environ.get(name))), None)
    if listed is not None:
        return len(listed.split(",")) * _number(os.environ.get(SLICES))
    if NO_METADATA in os.environ:
        return 1
    endpoints = _metadata("worker-network-endpoints")
    if not endpoints:
        return 1
    named = re.search(rf"^{SLICES}:\s*'?(\d+)", _metadata("tpu-env") or "", re.MULTILINE)
    return len(endpoints.split(",")) * _number(os.environ.get(SLICES) or (named and named[1]))


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 1


def _metadata(name: str) -> str | None:
    """An attribute of this machine of Google's; None where it has none of that name, or is no such machine."""
    host = os.environ.get(METADATA_HOST, "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/attributes/{name}", headers={"Metadata-Flavor": "Google"}
    )
    said: object = None
    for attempt in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            said = error
        except urllib.error.URLError as error:
            if isinstance(error.reason, OSError) and not isinstance(error.reason, TimeoutError):
                return None  # no such name, no route, nobody listens: another kind of machine
            said = error.reason
        except TimeoutError as error:
            said = error
        time.sleep(min(attempt, 1) / 2)
    raise InputError(
        f"the metadata server {host} must say which machines the TPU has, got {said}: {NO_METADATA}=1 is one"
    )
