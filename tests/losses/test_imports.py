"""The losses must be usable with nothing but torch installed beside the package."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {
    "transformers",
    "peft",
    "PIL",
    "datasets",
    "sentence_transformers",
    "typer",
    "rich",
    "matplotlib",
    "accelerate",
}

PROBE = """
import json, sys
import elva.losses
from elva.losses import InfoNCELoss, ELVALoss, GRPOLoss, elva_reward
packages = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps([packages, [name for name in sys.modules if name.startswith("elva")]]))
"""


def test_losses_load_only_torch():
    output = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True).stdout
    packages, ours = json.loads(output)
    assert "torch" in packages
    assert not HEAVY & set(packages)
    assert all(
        name.startswith(("elva.losses", "elva.ops", "elva.kernels", "elva._C"))
        for name in ours
        if name != "elva"
    )


def test_importing_elva_loads_nothing():
    probe = "import sys; before = set(sys.modules); import elva; print(elva.__version__, *(set(sys.modules) - before))"
    output = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stdout
    version, *loaded = output.split()
    assert version.count(".") == 2
    assert not {"torch", "transformers"} & {name.partition(".")[0] for name in loaded}
