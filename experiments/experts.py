"""Dense to experts: four published ways to a mixture of 4 experts, against the mixture from scratch, at equal FLOPs.

    growlm sweep --config=experiments/experts.py:cpu --workdir=runs/experts/cpu-0 --config.seed=0

sparse_upcycling and drop_upcycling begin with one expert, a dense model; expert_upcycling and orthogonal_experts with
half of the experts, of orthogonal_experts one for a token. Two experts of half the demo's width see a token, so a token
of the target costs what one of the demo's model does, and FLOPs count the active parameters. Shares, state and
schedules are those of docs/recipes.md; rates are quickstart's but where a search finds each its own:
`:small --config.search.peak_lr=[4e-3,8e-3,1.6e-2]`. `:tiny` takes seconds.

Cost, ESTIMATED and not measured: cpu 6e13 FLOPs, 11 minutes a seed on two cores, at quickstart's rate; gpu 1.1e17
FLOPs, 13 minutes on one H100, at 15 % of its peak. Mixtures reach less of it.

What is expected: sparse upcycling ahead of scratch for a short budget and behind it for a long one (arXiv 2212.05055
gains over a dense model that goes on, not over a mixture from scratch; arXiv 2502.19261 sees the copies specialise
slowly, and drop_upcycling overtake). expert_upcycling's half costs as much a token as the target: by FLOPs of active
parameters it saves nothing, and what it saves is memory.

Result: small, three seeds, every rate the best of five, in nats a byte: scratch 1.815, drop_upcycling 1.829,
sparse_upcycling 1.835, orthogonal_experts 1.838, expert_upcycling 1.908, from an untrained dense model 1.827,
average_size 1.875. So none is ahead of the mixture from scratch, and only expert_upcycling is behind it beyond its
interval, -25 % [-37, -10]. cpu and gpu are not run yet.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from growlm.training.recipe import scale

SYSTEMS = ("sparse_upcycling", "drop_upcycling", "expert_upcycling", "orthogonal_experts")


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant)
    mixture = {"architecture": "mixtral", "experts": 4, "experts_per_token": 2, "mlp": size.widths["mlp"] // 2}
    size = replace(size, widths={**size.widths, **mixture})
    runs = {system: size.system(system) for system in SYSTEMS}
    dense = size.base(0.5, size.model(experts=1, experts_per_token=1))
    return size.sweep("Dense to experts", runs, size.controls(size.grown([dense], "sparse_upcycling")))
