"""Sparse pre-training, then dense: half or three quarters of the blocks masked at first, at equal FLOPs.

    growlm sweep --config=experiments/sparse.py:cpu --workdir=runs/sparse/cpu-0 --config.seed=0

SPDF (arXiv 2303.10464): a static random mask on the matrices of the blocks while the model is pre-trained, then all of
it is trained. sparse_50 and sparse_75 are masked on half of what scratch has in tokens, and dense on what that leaves
of the budget; sparse_75_short is masked on a quarter. FLOPs count what is kept, which is what hardware with sparse
products could do: here these runs take longer than scratch. `:gpu` has 24 layers. `:tiny` takes seconds.

Cost, ESTIMATED and not measured: cpu 3.6e13 FLOPs, gpu 6.9e16: 6 minutes a seed on two cores, at quickstart's rate, and
8 on one H100, at 15 % of its peak, if products were sparse; more as they are.

What is expected: behind scratch in loss. The paper asks something else, whether a model that was sparse in
pre-training is as good after dense fine-tuning for less compute: at 75 % on 1.3B parameters, with 2.5 times fewer
FLOPs of pre-training, it nearly is. As growth it competes with stacking, which makes the small model smaller in depth.

Result: not run yet.
"""

from ml_collections import ConfigDict

from growlm.training.recipe import Run, Scale, scale


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant)
    runs = {"sparse_50": _run(size, 0.5, 0.5), "sparse_75": _run(size, 0.75, 0.5)}
    runs["sparse_75_short"] = _run(size, 0.75, 0.25)
    return size.sweep("Sparse, then dense", runs)


def _run(size: Scale, sparsity: float, share: float) -> Run:
    """Masked on a share of the budget's tokens, then dense."""
    before = size.stage(size.model(), size.part(share), size.base_lr, kind="constant", sparsity=sparsity)
    return size.grown([before], "direct")
