"""Samba trained on a mesh of 8 fake devices and on one of them; prints losses. Run by its test."""

from own_on_eight import main

from growlm.models import SambaConfig

MODEL = SambaConfig(
    periods=2, embed=8, channels=16, dt_rank=2, heads=2, kv_heads=2, head_dim=4, mlp=12, vocab=20, sliding_window=5
)
KEPT = {name: ("mamba", name) for name in ("out", "A_log", "conv")}

if __name__ == "__main__":
    main(MODEL, KEPT)
