"""The compute that training costs: the paper's count, and the exact one with attention."""


def training_flops(params: float, tokens: float) -> float:
    """The paper's count of training compute, C = 6 N D, in FLOPs.

    N is the number of ALL parameters, embedding and head included. The paper does not say so; its figures do:
    each carries a FLOPs axis and a token axis, and 6 x total parameters falls between the tick labels at
    every size, while 6 x non-embedding parameters fails at 410M and 1.1B, and so does any count with
    attention in it.

    Args:
        params: number of parameters N (a number or an array).
        tokens: tokens trained on D (a number or an array that broadcasts with it).
    """
    return 6.0 * params * tokens


def exact_flops_per_token(
    matmul_params: int, layers: int, heads: int, head_dim: int, length: int, window: int | None = None
) -> float:
    """FLOPs that one training token costs, forward and backward, with causal attention; a sequence's mean.

    A parameter in a matrix product costs one multiply and one add going forward, and twice that going
    backward (the gradient of the input and the gradient of the weight): 6 FLOPs per token. Looking up an
    embedding multiplies nothing, so it counts only where it is tied and serves as the head too; the gains of
    norms are not in products.

    Position t (from 0) attends to t + 1 keys, so the mean over a sequence is (length + 1) / 2 keys, fewer with a
    window. Each key costs heads x head_dim multiply-adds in the product of queries and keys, and as many again in
    the weighted sum of values: 4 x heads x head_dim FLOPs. Forward that makes 2 x heads x head_dim x (length + 1)
    per layer without a window, and forward plus backward three times that. The softmax is left out, and so is what
    rematerialisation computes a second time.

    Args:
        matmul_params: number of parameters that take part in matrix products.
        layers: number of blocks with attention.
        heads: number of query heads. Shared key-value heads save memory and parameters, not these products.
        head_dim: size of one head.
        length: tokens in a sequence.
        window: the positions that a query sees, if there is a limit.
    """
    seen = min(window or length, length)
    keys = (seen * (seen + 1) / 2 + (length - seen) * seen) / length
    attention = 12.0 * layers * heads * head_dim * keys
    return 6.0 * matmul_params + attention
