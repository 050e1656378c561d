"""G_stack on novels, with a tokenizer of their own: 2 layers to 8, its controls, and the paper's eight benchmarks.

    growlm prepare --source=NOVELS --train_tokenizer=bpe --vocab=2048 --validation=4 --output=runs/novels-tokens
    growlm sweep --config=experiments/novels.py:cpu --workdir=runs/novels/cpu-0 --config.seed=0

NOVELS is a folder of text files, a novel each; the result is of 100 English novels of 1813 to 1933, 78 MB. Whole
novels are held out. A tokenizer takes `pip install -e '.[data]'`, the benchmarks `pip install -e '.[eval]'`. They are
fetched; `--config.evaluation.data_dir=DIR` has them from files, `--config.evaluation.tasks="('piqa', 'sciq')"` asks
for others, `=()` for none. `:gpu` has 24 layers of 256 and reads the novels twice. `:cpu_8k` has 8192 tokens, from
runs/novels-tokens-8k, and reads 8 million of them: what an hour of two cores allows. `:tiny` takes seconds.

All runs cost the same, 6 x parameters x tokens over all stages, and run their schedules to the end. scratch has the
grown run's rate; scratch_tuned and scratch_low a half and a quarter of it. Whoever compares believes the best of them.

Cost: cpu 5.1e13 FLOPs, 9 to 15 minutes for each of four runs on one core beside other work, and 2 to 4 minutes for the
benchmarks of each; ESTIMATED and not measured, cpu_8k 1.8e14, an hour on two cores, and gpu 2.9e16 FLOPs, 4 minutes
on one H100, at 15 % of its peak.

What is expected: less than on bytes, as the embedding, a quarter of the parameters, is in the small model too: its
tokens cost 43 % of the large one's, with 8192 tokens 67 %, so there less again, 0 to 10 %. Benchmarks near chance, but
for the perplexities, and for bits of the right answer (`growlm.evaluation.resolution`), which should move.

Result: cpu at seed 0. Growing reaches the loss of scratch_tuned with 13 % less compute (speed-up +15.1 %; +15.2 %
over scratch, +35.9 % over scratch_low). Accuracies are those of guessing; the grown run's WikiText has the fewest
bits a byte.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from growlm.training.recipe import Scale, scale

LARGE = "cpu_8k"


def get_config(variant: str = "cpu") -> ConfigDict:
    name, tokens, vocab = ("cpu", 8_000_000, 8192) if variant == LARGE else (variant, 4_000_000, 2048)
    size = _on_novels(scale(name, tokens=tokens, batch=4, length=256), vocab)
    grown = size.grown([size.base(0.2)], "g_stack")
    low = {"scratch_low": (size.scratch(size.peak_lr / 4), "equal FLOPs and a quarter of the rate")}
    config = size.sweep("G_stack on novels: 2 layers to 8", {"grown": grown}, low)
    config.corpus = "runs/novels-tokens-8k" if variant == LARGE else "runs/novels-tokens"
    config.evaluation.batches = 32
    config.evaluation.tasks = ("paper",)
    return config


def _on_novels(size: Scale, vocab: int) -> Scale:
    """With the tokenizer's vocabulary, and its head tied, or most parameters of a small model were in the two."""
    return replace(
        size,
        widths={**size.widths, "vocab": vocab, "tie_embeddings": True},
        tokens=min(size.tokens, 60_000_000),
        tuned_lr=size.peak_lr / 2,
    )
