"""Checkpoints of others: Hugging Face folders of the Llama family in, and out again."""

from pathlib import Path

from growlm.interop.folder import describe_folder, is_hugging_face, open_folder, read_params
from growlm.weights import ModelConfig, Params

__all__ = ["describe", "read_model"]


def read_model(folder: Path | str) -> tuple[ModelConfig, Params]:
    """The shape and the parameters of a saved model.

    Args:
      folder: a Hugging Face checkpoint in safetensors (llama, mistral, qwen2, qwen3), or a folder of `growlm train` or
        `growlm grow` (of which the last checkpoint is read).

    Returns:
      (config, params): params as `growlm.init` gives them, float32, NumPy arrays or JAX arrays; they hold the stored
      values exactly.

    Raises:
      InputError: a folder of another kind, another family, weights that are damaged, missing or not what config.json
        says.
    """
    folder = Path(folder)
    if is_hugging_face(folder):
        source = open_folder(folder)
        return source.model, read_params(source)
    from growlm.training.saved import load_saved

    config, _, state = load_saved(folder)
    return config, state.params


def describe(folder: Path | str) -> str:
    """What a Hugging Face folder holds, as text. Raises InputError as `read_model` does; weights are not read."""
    return describe_folder(open_folder(Path(folder)))
