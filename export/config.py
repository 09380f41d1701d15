"""What the files of a sentence-transformers model say of it, in the forms that versions 2 to 6 write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifact.manifest import ACTIVATIONS, MAX_TOKENS, POOLINGS, Dense
from export import ExportError

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"

FAMILIES = ("bert", "distilbert", "mpnet", "roberta", "xlm-roberta")
"""The encoders that work, by transformers' `model_type`."""
_COUNTED_FROM_PADDING = ("mpnet", "roberta", "xlm-roberta")
"""Families whose first position is the padding token's id + 1 (transformers, `create_position_ids_from_input_ids`)."""

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Names that sentence-transformers looks for, in its order."""
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""One flag a mode, before version 5.4."""
_KNOWN_SETTINGS: Mapping[str, Sequence[object]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
}
"""Settings of the Transformer module with the only values that work."""
_WITHOUT_EFFECT = {"max_seq_length", "do_lower_case", "unpad_inputs"}
"""Those that are read elsewhere, or change no vector."""
_LOADING = {"torch_dtype", "dtype", "attn_implementation", "add_pooling_layer", "model_max_length", "use_fast"}
"""Arguments of transformers' loaders that change no vector by more than rounding, or are read elsewhere."""


@dataclass(frozen=True)
class Config:
    """How a model makes a vector of a text."""

    encoder: Path
    """Folder of the transformer and its tokenizer."""
    max_tokens: int
    lower_case: bool
    """Whether the tokenizer is to lower-case texts, though its own files may not say so."""
    pooling: str
    pooled_dimensions: int
    dense: tuple[Dense, ...]
    dense_folders: tuple[Path, ...]
    normalize: bool
    truncate_dim: int | None
    matryoshka: tuple[int, ...]
    """Smaller numbers of dimensions that the model was trained for, the largest first."""
    prompts: Mapping[str, str]
    """None at all where all are empty, as version 5 writes them for models that have none."""
    default_prompt: str | None
    similarity: str | None

    @property
    def full_dimensions(self) -> int:
        """Dimensions before `truncate_dim`."""
        return self.dense[-1].outputs if self.dense else self.pooled_dimensions

    @property
    def dimensions(self) -> int:
        return min(self.full_dimensions, self.truncate_dim or self.full_dimensions)

    def with_matryoshka(self, sizes: Sequence[int]) -> Config:
        """The same with other `matryoshka`. Raises ExportError if one is not smaller than `dimensions`."""
        if (largest := max(sizes)) >= self.dimensions:
            raise ExportError(
                f"--matryoshka has {largest}, the model's vectors have {self.dimensions}: name fewer dimensions"
            )
        return replace(self, matryoshka=tuple(sorted(set(sizes), reverse=True)))


def read_config(folder: Path) -> Config:
    """Read a model's files. Raises ExportError that names what does not work here, and what does."""
    modules = _read_modules(folder)
    (_, encoder), (_, pooling_folder), *rest = modules
    for kind, path in rest:
        if kind == "Normalize":
            _check_ends(_read_object(path / "config.json", optional=True), path / "config.json")
    _check_family(encoder)
    settings = _read_settings(encoder)
    pooling, pooled_dimensions = _read_pooling(pooling_folder, encoder)
    dense_folders = tuple(path for kind, path in rest if kind == "Dense")
    model = _read_object(folder / "config_sentence_transformers.json", optional=True)
    prompts, default_prompt = _read_prompts(model, folder)
    config = Config(
        encoder=encoder,
        max_tokens=_read_max_tokens(encoder, settings),
        lower_case=settings.get("do_lower_case") is True,
        pooling=pooling,
        pooled_dimensions=pooled_dimensions,
        dense=_read_dense(dense_folders, pooled_dimensions),
        dense_folders=dense_folders,
        normalize=any(kind == "Normalize" for kind, _ in rest),
        matryoshka=(),
        truncate_dim=_number(model.get("truncate_dim"), f"{folder}/config_sentence_transformers.json", "truncate_dim"),
        prompts=prompts,
        default_prompt=default_prompt,
        similarity=_read_similarity(model, folder),
    )
    # Most lists have the whole vector's size too.
    smaller = [size for size in _read_matryoshka(encoder) if size < config.dimensions]
    return config.with_matryoshka(smaller) if smaller else config


def check_files(folder: Path, model: str) -> None:
    """Raise ExportError if a file is missing without which nothing works; `model` is how the user calls the model."""
    _check_there(folder / "modules.json")
    modules = _read_modules(folder)
    encoder = modules[0][1]
    _check_there(encoder / "config.json")
    command = f"from sentence_transformers import SentenceTransformer as S; S('{model}').save_pretrained('NEW')"
    anew = f'if you trust it, save it anew with: python -c "{command}", and pass: --model NEW --model-id ORG/NAME'
    for kind, path in modules:
        if kind in ("Transformer", "Dense") and not (path / WEIGHTS).is_file():
            raise ExportError(
                f"{path} has no {WEIGHTS}, and weights in other files (pytorch_model.bin, several parts) do not work: "
                f"{anew}"
            )
    if not (encoder / TOKENIZER).is_file():
        raise ExportError(f"{encoder} has no {TOKENIZER}: {anew}")


def read_json(path: Path) -> Any:
    """Raises ExportError."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot read {path}: {error}") from error


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise ExportError(f"{path.parent} has no {path.name}: it must hold a whole sentence-transformers model")


def _read_object(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise ExportError(f"{path} holds {found!r:.80}, not an object")
    return found


def _number(value: Any, where: object, name: str) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise ExportError(f"{where} has {name} {value!r}, not a whole number of at least 1")
    return value


def _read_modules(folder: Path) -> list[tuple[str, Path]]:
    """Each module's class and folder."""
    path = folder / "modules.json"
    try:
        types = [(str(entry["type"]), folder / str(entry["path"])) for entry in read_json(path)]
    except (TypeError, KeyError) as error:
        raise ExportError(f"{path} is not a list of modules with type and path: {error!r}") from error
    modules = [(kind.rpartition(".")[2], place) for kind, place in types]
    names = [
        name if kind.startswith("sentence_transformers.") else kind
        for (kind, _), (name, _) in zip(types, modules, strict=True)
    ]
    if not re.fullmatch(r"Transformer Pooling( Dense)*( Normalize)?", " ".join(names)):
        raise ExportError(
            f"{folder} has the modules {', '.join(names) or 'none'}: only Transformer, Pooling, any Dense and then "
            "Normalize work, and in this order"
        )
    return modules


def _check_family(encoder: Path) -> None:
    path = encoder / "config.json"
    config = _read_object(path)
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ExportError(f"{path} has model_type {family!r}: only {', '.join(FAMILIES)} work")
    if config.get("auto_map"):
        raise ExportError(f"{path} asks for code of the model's own (auto_map): only transformers' own {family} works")
    if config.get("is_decoder"):
        raise ExportError(f"{path} describes a decoder (is_decoder): only encoders work")


def _read_settings(encoder: Path) -> dict[str, Any]:
    """The Transformer module's settings, of which all are known."""
    path = next((encoder / name for name in _TRANSFORMER_CONFIGS if (encoder / name).is_file()), None)
    if path is None:
        return {}
    settings = _read_object(path)
    for name, value in settings.items():
        if name in _WITHOUT_EFFECT or value in (None, {}):
            continue
        if name.endswith(("_args", "_kwargs")) and isinstance(value, dict):
            unknown = {key: inner for key, inner in value.items() if key not in _LOADING and inner is not None}
        else:
            unknown = {} if value in _KNOWN_SETTINGS.get(name, ()) else {name: value}
        for key, inner in unknown.items():
            works = "".join(f": only {json.dumps(known)} works" for known in _KNOWN_SETTINGS.get(name, ()))
            raise ExportError(f"{path} has {key} {json.dumps(inner)}, which does not work here{works}")
    return settings


def _read_max_tokens(encoder: Path, settings: Mapping[str, Any]) -> int:
    """The module's maximum, else the tokenizer's, and no more than the model has positions for."""
    tokenizer = _read_object(encoder / "tokenizer_config.json", optional=True)
    if tokenizer.get("truncation_side", "right") != "right":
        raise ExportError(
            f"{encoder / 'tokenizer_config.json'} cuts texts at the {tokenizer['truncation_side']} (truncation_side): "
            "only right works"
        )
    loading = settings.get("processor_kwargs") or settings.get("tokenizer_args") or {}
    limit = (
        _number(settings.get("max_seq_length"), encoder, "max_seq_length")
        or _number(loading.get("model_max_length"), encoder, "model_max_length")
        or _number(tokenizer.get("model_max_length"), encoder, "model_max_length")
    )
    config = _read_object(encoder / "config.json")
    places = _number(config.get("max_position_embeddings"), encoder / "config.json", "max_position_embeddings")
    if places is None:
        raise ExportError(f"{encoder / 'config.json'} has no max_position_embeddings")
    if config["model_type"] in _COUNTED_FROM_PADDING:
        padding = config.get("pad_token_id")
        places -= 1 + (padding if type(padding) is int else 1)
    found = min(limit or places, places)
    if not 1 <= found <= MAX_TOKENS:
        raise ExportError(f"{encoder} reads {found} tokens: set max_seq_length to at least 1 and at most {MAX_TOKENS}")
    return found


def _read_pooling(folder: Path, encoder: Path) -> tuple[str, int]:
    """The mode and the number of dimensions."""
    path = folder / "config.json"
    config = _read_object(path)
    found = config.get("pooling_mode") or [mode for flag, mode in _OLD_POOLINGS.items() if config.get(flag) is True]
    modes = [str(mode) for mode in (found if isinstance(found, list) else [found])]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ExportError(f"{path} asks for {' and '.join(modes) or 'no pooling'}: one of {', '.join(POOLINGS)} works")
    if config.get("include_prompt") is False:
        raise ExportError(f"{path} leaves prompts out of the pooling (include_prompt false), which does not work here")
    dimensions = _number(config.get("embedding_dimension") or config.get("word_embedding_dimension"), path, "dimension")
    sizes = _read_object(encoder / "config.json")
    width = sizes.get("hidden_size", sizes.get("dim"))  # DistilBERT's name for it
    if dimensions is None or dimensions != width:
        raise ExportError(f"{path} has embedding_dimension {dimensions}, the encoder has {width}")
    return modes[0], dimensions


def _check_ends(config: Mapping[str, Any], path: Path) -> None:
    """Dense and Normalize may also be set to work on each token's vector."""
    for end in ("module_input_name", "module_output_name"):
        if config.get(end) not in (None, "sentence_embedding"):
            raise ExportError(f"{path} has {end} {config[end]!r}: only sentence_embedding works")


def _read_dense(folders: Sequence[Path], inputs: int) -> tuple[Dense, ...]:
    layers = []
    for folder in folders:
        path = folder / "config.json"
        config = _read_object(path)
        activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        name = activation.rpartition(".")[2]
        if name not in ACTIVATIONS or not activation.startswith("torch."):
            raise ExportError(f"{path} has activation_function {activation}: {', '.join(ACTIVATIONS)} of torch work")
        if config.get("use_residual"):
            raise ExportError(f"{path} adds its input to its output (use_residual), which does not work here")
        _check_ends(config, path)
        layer = Dense(
            inputs=_number(config.get("in_features"), path, "in_features") or 0,
            outputs=_number(config.get("out_features"), path, "out_features") or 0,
            bias=config.get("bias") is not False,
            activation=name,
        )
        if layer.inputs != inputs or not layer.outputs:
            raise ExportError(f"{path} has {layer.inputs} in_features and {layer.outputs} out_features after {inputs}")
        inputs = layer.outputs
        layers.append(layer)
    return tuple(layers)


def _read_matryoshka(encoder: Path) -> list[int]:
    """The field of which vLLM reads the same."""
    path = encoder / "config.json"
    found = _read_object(path).get("matryoshka_dimensions") or []
    if not isinstance(found, list) or not all(type(size) is int and size > 0 for size in found):
        raise ExportError(f"{path} has matryoshka_dimensions {found!r:.80}, not a list of whole numbers from 1")
    return found


def _read_prompts(model: Mapping[str, Any], folder: Path) -> tuple[Mapping[str, str], str | None]:
    path = folder / "config_sentence_transformers.json"
    if (kind := model.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise ExportError(f"{path} has model_type {kind!r}: only SentenceTransformer works")
    found = model.get("prompts") or {}
    if not isinstance(found, dict):
        raise ExportError(f"{path} has prompts {found!r}, not an object")
    prompts = {name: "" if text is None else text for name, text in found.items()}
    for name, text in prompts.items():
        if not isinstance(text, str) or (name + text).encode(errors="ignore").decode() != name + text:
            raise ExportError(f"{path} has the prompt {name} {text!r}, not a text")
    default = model.get("default_prompt_name")
    if default is not None and default not in list(prompts):
        raise ExportError(f"{path} has default_prompt_name {default!r}, and prompts {', '.join(prompts) or 'none'}")
    return (prompts, default) if any(prompts.values()) else ({}, None)


def _read_similarity(model: Mapping[str, Any], folder: Path) -> str | None:
    found = model.get("similarity_fn_name")
    if found is not None and found not in SIMILARITIES:
        raise ExportError(
            f"{folder / 'config_sentence_transformers.json'} has similarity_fn_name {found!r}: only "
            f"{', '.join(SIMILARITIES)} work"
        )
    return found
