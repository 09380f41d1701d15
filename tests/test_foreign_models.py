"""python -m quantize with the ONNX files that people bring: each is quantized well or refused in one sentence."""

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test.loader
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

import quantize.dynamic
import quantize.fusion
from artifact.manifest import open_artifact
from export.to_onnx import to_onnx
from quantize import RECIPES, QuantizationError, Report
from quantize import quantize as quantize_file
from quantize.fusion import fuse
from quantize.session import feed, open_session, run
from quantize.source import LARGEST, check_source

pytestmark = pytest.mark.slow

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
T5_SIZES = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}


def bert(kind: type[PreTrainedModel] = BertModel, /, **settings: object) -> PreTrainedModel:
    return shaken(kind(BertConfig(**SIZES | settings)))


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """A model no two of whose weights are equal, which the exporter would make one, and no bias of which is zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


def export(
    model: PreTrainedModel,
    path: Path,
    inputs: Sequence[str] = INPUTS,
    example: torch.Tensor | None = None,
    dynamic: bool = True,
    opset: int = 18,
) -> Path:
    """Export by torch alone, as people do who do not use optimum."""
    ids = torch.zeros((2, 7), dtype=torch.long) if example is None else example
    model.config.return_dict = False
    names = [*inputs, "output"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of itself and of every shape that Python looks at
        torch.onnx.export(
            model,
            ({name: ids if name == "token_type_ids" else torch.ones_like(ids) for name in inputs},),
            str(path),
            input_names=list(inputs),
            output_names=["output"],
            dynamic_axes={name: {0: "batch", 1: "sequence"} for name in names} if dynamic else None,
            opset_version=opset,
            dynamo=False,
        )
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """A good model of 100 kB."""
    path = export(bert(vocab_size=50, max_position_embeddings=32), tmp_path_factory.mktemp("tiny") / "model.onnx")
    return onnx.load(path)


@pytest.fixture
def altered(tiny: ModelProto, tmp_path: Path) -> Callable[[Callable[[ModelProto], object]], Path]:
    """Save the good model with a change."""

    def save(change: Callable[[ModelProto], object]) -> Path:
        model = ModelProto()
        model.CopyFrom(tiny)
        change(model)
        path = tmp_path / "in.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return save


NO_TOKENIZER = Path("no tokenizer is read before the model is checked")


def quantized(source: Path, tokenizer: Path, recipe: str = "per-token") -> Report:
    return quantize_file(source, source.with_name("int8.onnx"), tokenizer, 32, recipe)


def dynamic(source: Path, target: Path, recipe: str = "avx2") -> None:
    """A dynamic recipe alone, without the check of its result, which needs the model's own tokenizer."""
    RECIPES[recipe].apply(source, target, [], lambda done, total: None)


def refusal(path: Path) -> str:
    """The sentence with which a file is refused before any recipe starts."""
    with pytest.raises(QuantizationError) as caught:
        check_source(path)
    return str(caught.value)


def replace_node(model: ModelProto, index: int, *nodes: onnx.NodeProto) -> None:
    kept = list(model.graph.node)
    kept[index : index + 1] = nodes
    del model.graph.node[:]
    model.graph.node.extend(kept)


def positions(model: ModelProto, kind: str) -> list[int]:
    """Where the nodes of a kind are that read weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    nodes = enumerate(model.graph.node)
    return [index for index, node in nodes if node.op_type == kind and set(node.input) & weights]


# What is no ONNX model


def test_a_good_model_is_not_refused(altered: Callable[..., Path]) -> None:
    check_source(altered(lambda model: None))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_refuses_what_is_no_source(recipe: str, model_folder: Path, tmp_path: Path) -> None:
    int8 = Path(open_artifact(model_folder).model("int8"))
    with pytest.raises(
        QuantizationError, match=rf"^{int8} is quantized already \(Embed\): start from the float32 model$"
    ):
        quantize_file(int8, tmp_path / "out.onnx", NO_TOKENIZER, recipe=recipe)
    with pytest.raises(QuantizationError, match=r"cannot read .*in.onnx: No such file or directory"):
        quantize_file(tmp_path / "in.onnx", tmp_path / "out.onnx", NO_TOKENIZER, recipe=recipe)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, download it again or export it with optimum"),
        (b"\xff" * 99, r"is not an ONNX model or only a part of one \(Error parsing .*\), download it again or export"),
        (
            onnx.ModelProto(ir_version=8).SerializeToString(),
            "is not an ONNX model with operators and outputs, download",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS: .* git lfs pull"),
        (b"\x00\x00\x00\x00ORTM" + bytes(90), "is in the ORT format: start from the ONNX file that it was made from"),
    ],
)
def test_what_is_no_onnx_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(content)
    with pytest.raises(QuantizationError, match=f"^{path} {message}"):
        check_source(path)


def test_a_file_cut_short(altered: Callable[..., Path]) -> None:
    path = altered(lambda model: None)
    os.truncate(path, path.stat().st_size // 2)
    assert "is not an ONNX model or only a part of one" in refusal(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"cannot read {tmp_path}: it is not a file, name the model.onnx in it"
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(tmp_path / "loop") == f"cannot read {tmp_path / 'loop'}: Too many levels of symbolic links"
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGEST + 1)
    assert refusal(tmp_path / "large") == f"{tmp_path / 'large'} is too large: at most 2 GB are supported"


def test_names_that_are_not_text(altered: Callable[..., Path]) -> None:
    path = altered(lambda model: setattr(model.graph.node[0], "op_type", "NOT_TEXT"))
    path.write_bytes(path.read_bytes().replace(b"NOT_TEXT", b"NOT_T\xff\xffT"))
    assert "has names that are not text, download it again or export it with optimum" in refusal(path)


# What is quantized, optimized or of another type


@pytest.mark.parametrize(
    ("domain", "operator"),
    [
        *[("", name) for name in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger")],
        *[("", name) for name in ("ConvInteger", "QLinearMatMul", "QLinearConv")],
        *[("com.microsoft", name) for name in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")],
        *[("com.microsoft", name) for name in ("QAttention", "QGemm", "QLinearAdd", "QEmbedLayerNormalization")],
        *[("com.microsoft", name) for name in ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QOrderedMatMul")],
        ("lambda.embeddings", "LinearAddNormalize"),
    ],
)
def test_quantized_operators(domain: str, operator: str, altered: Callable[..., Path]) -> None:
    node = helper.make_node(operator, ["input_ids"], ["unread"], domain=domain)
    message = f"is quantized already ({operator}): start from the float32 model"
    assert message in refusal(altered(lambda model: model.graph.node.append(node)))

    branch = helper.make_graph([node], "branch", [], [])
    outer = helper.make_node("If", ["input_ids"], ["unread"], then_branch=branch, else_branch=branch)
    assert message in refusal(altered(lambda model: model.graph.node.append(outer)))

    function = helper.make_function("own", "Own", ["input_ids"], ["unread"], [node], [])
    assert message in refusal(altered(lambda model: model.functions.append(function)))


@pytest.mark.parametrize("recipe", ["avx2", "avx512_vnni"])
def test_what_a_dynamic_recipe_made(recipe: str, altered: Callable[..., Path], tmp_path: Path) -> None:
    dynamic(altered(lambda model: None), tmp_path / "int8.onnx", recipe)
    assert "is quantized already (" in refusal(tmp_path / "int8.onnx")


WORDS = r"\(\S*word_embeddings.weight\)"


def with_words_of(kind: int) -> Callable[[ModelProto], object]:
    """A model whose table of words is of another type."""

    def change(model: ModelProto) -> None:
        (words,) = (tensor for tensor in model.graph.initializer if "word_embeddings" in tensor.name)
        words.data_type = kind

    return change


def in_float16(model: ModelProto) -> None:
    model.CopyFrom(convert_float_to_float16(model, disable_shape_infer=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[
            (with_words_of(kind), r"is quantized already \(\S*word_embeddings.weight is \w+\): start from the float32")
            for kind in (
                TensorProto.INT8,
                TensorProto.UINT8,
                TensorProto.INT4,
                TensorProto.UINT4,
                TensorProto.FLOAT8E4M3FN,
            )
        ],
        (in_float16, r"has float16 weights \(\S+\): export it in float32, optimum's default"),
        (with_words_of(TensorProto.BFLOAT16), rf"has bfloat16 weights {WORDS}: export it in float32"),
        (with_words_of(TensorProto.DOUBLE), rf"has double weights {WORDS}: export it in float32"),
    ],
)
def test_weights_of_another_type(
    change: Callable[[ModelProto], object], message: str, altered: Callable[..., Path]
) -> None:
    with pytest.raises(QuantizationError, match=message):
        check_source(altered(change))


def test_a_sparse_table_is_seen(altered: Callable[..., Path]) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros((1, 2), np.int8), "indices")
    sparse = helper.make_sparse_tensor(values, indices, [4, 4])
    assert "is quantized already (indices is int8)" in refusal(
        altered(lambda model: model.graph.sparse_initializer.append(sparse))
    )


def with_operator(domain: str, operator: str) -> Callable[[ModelProto], object]:
    return lambda model: model.graph.node.append(helper.make_node(operator, ["input_ids"], ["unread"], domain=domain))


@pytest.mark.parametrize("operator", ["Attention", "EmbedLayerNormalization", "SkipLayerNormalization", "FusedMatMul"])
def test_optimized_models(operator: str, altered: Callable[..., Path]) -> None:
    message = f"is optimized for onnxruntime already ({operator}): start from the model as it was, with optimum without"
    assert message in refusal(altered(with_operator("com.microsoft", operator)))


def test_operators_that_are_not_onnx(altered: Callable[..., Path]) -> None:
    message = "has operators that are not ONNX's (org.pytorch.aten.ATen): export it with optimum"
    assert message in refusal(altered(with_operator("org.pytorch.aten", "ATen")))
    function = helper.make_function("own", "Own", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [])
    assert "has functions of its own (Own): inline them with onnx.inliner" in refusal(
        altered(lambda model: model.functions.append(function))
    )
    # onnxruntime has the last word.
    assert "cannot be run by onnxruntime (" in refusal(altered(with_operator("", "NoSuchOperator")))


# External data


@pytest.fixture
def external(tiny: ModelProto, tmp_path: Path) -> Path:
    """The good model with its weights in another file."""
    (tmp_path / "model" / "weights").mkdir(parents=True)
    model = ModelProto()
    model.CopyFrom(tiny)
    path = tmp_path / "model" / "in.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights/data", size_threshold=0)
    check_source(path)
    return path


def test_external_data_that_is_missing(external: Path) -> None:
    data = external.with_name("weights") / "data"
    size = data.stat().st_size
    data.rename(data.with_name("moved"))
    assert (
        refusal(external) == f"cannot read {data}, the weights of {external}: No such file or directory; put it there"
    )
    data.symlink_to("moved")
    assert refusal(external) == f"{data} is a link, which onnx does not follow: copy the folder with cp -rL"
    data.unlink()
    data.hardlink_to(data.with_name("moved"))
    assert f"{data} is a link" in refusal(external)
    data.unlink()
    data.mkdir()
    assert refusal(external) == f"cannot read {data}, the weights of {external}: not a file or not permitted"
    data.rmdir()
    data.with_name("moved").rename(data)
    os.truncate(data, size - 1)
    assert refusal(external) == f"{data} has {size - 1} of the {size} bytes that {external} needs: download it again"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("location", "../data", "keeps weights in '../data', not in its folder: save both anew in one folder"),
        ("location", "/etc/passwd", "keeps weights in '/etc/passwd', not in its folder"),
        ("location", "", "keeps weights in '', not in its folder"),
        ("location", "a\0b", r"cannot read .*, the weights of .*: .*null"),
        (
            "length",
            "many",
            "no valid place of .*invalid literal for int.*, download it again or export it with optimum",
        ),
        ("offset", "99999999", "bytes that .* needs: download it again"),
    ],
)
def test_external_data_that_is_elsewhere(key: str, value: str, message: str, external: Path) -> None:
    model = onnx.load(external, load_external_data=False)
    (entry,) = (entry for entry in model.graph.initializer[0].external_data if entry.key == key)
    entry.value = value
    external.write_bytes(model.SerializeToString())
    with pytest.raises(QuantizationError, match=message):
        check_source(external)


def test_external_data_of_too_many_bytes(external: Path) -> None:
    model = onnx.load(external, load_external_data=False)
    table = helper.make_tensor("large", TensorProto.FLOAT, [0], [])
    table.dims[:] = [2**15, 2**14]
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value="large")
    model.graph.initializer.append(table)
    external.write_bytes(model.SerializeToString())
    with external.with_name("large").open("wb") as file:
        file.truncate(2**31)
    assert refusal(external) == f"{external} has 2.1 GB of weights: at most 2 GB are supported"


# Inputs and outputs


def with_input(index: int, name: str, kind: int, shape: Sequence[int | str]) -> Callable[[ModelProto], object]:
    value = helper.make_tensor_value_info(name, kind, shape)
    return lambda model: model.graph.input[index].CopyFrom(value)


FREE = ("batch", "sequence")
OTHER = (
    "and not input_ids, attention_mask and token_type_ids: export a text encoder with optimum, task feature-extraction"
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_input(0, "pixel_values", TensorProto.FLOAT, ["batch", 3, 32, 32]), f"reads pixel_values, .*, {OTHER}"),
        (with_input(0, "inputs_embeds", TensorProto.FLOAT, [*FREE, 32]), f"reads inputs_embeds, .*, {OTHER}"),
        (
            with_input(1, "decoder_input_ids", TensorProto.INT64, FREE),
            f"reads input_ids, decoder_input_ids, .*, {OTHER}",
        ),
        (with_input(2, "position_ids", TensorProto.INT64, FREE), f"reads input_ids, .*, position_ids, {OTHER}"),
        (lambda model: model.graph.ClearField("input"), f"reads nothing, {OTHER}"),
        (
            with_input(0, "input_ids", TensorProto.INT32, FREE),
            "reads input_ids as int32, and not int64: export it with",
        ),
        (with_input(0, "input_ids", TensorProto.FLOAT, FREE), "reads input_ids as float, and not int64"),
        (
            with_input(1, "attention_mask", TensorProto.INT64, [*FREE, 1]),
            r"attention_mask of 3 axes, and not of \(texts",
        ),
        (
            with_input(0, "input_ids", TensorProto.INT64, [1, "sequence"]),
            r"takes exactly 1 texts at a time \(input_ids\)",
        ),
        (
            with_input(1, "attention_mask", TensorProto.INT64, ["batch", 128]),
            r"takes exactly 128 tokens at a time \(attention_mask\): export it with dynamic axes, optimum's default",
        ),
    ],
)
def test_other_inputs(change: Callable[[ModelProto], object], message: str, altered: Callable[..., Path]) -> None:
    with pytest.raises(QuantizationError, match=message):
        check_source(altered(change))


def test_many_inputs_are_not_all_named(altered: Callable[..., Path]) -> None:
    past = [helper.make_tensor_value_info(f"past.{number}", TensorProto.FLOAT, FREE) for number in range(24)]
    found = refusal(altered(lambda model: model.graph.input.extend(past)))
    assert "reads input_ids, attention_mask, token_type_ids, past.0, past.1, ..., and not" in found


def test_inputs_that_older_exporters_write(altered: Callable[..., Path]) -> None:
    """Weights among the inputs, axes without a name or a size."""

    def change(model: ModelProto) -> None:
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
        model.graph.input[1].type.tensor_type.ClearField("shape")

    path = altered(change)
    check_source(path)
    assert len(fuse(path).groups) == len(fuse(altered(lambda model: None)).groups) > 0


def with_first_output(*nodes: onnx.NodeProto, kind: int | None = TensorProto.FLOAT) -> Callable[[ModelProto], object]:
    def change(model: ModelProto) -> None:
        model.graph.node.extend(nodes)
        model.graph.output.insert(0, helper.make_empty_tensor_value_info(nodes[-1].output[0]))
        if kind is not None:
            model.graph.output[0].type.tensor_type.elem_type = kind

    return change


NAN = numpy_helper.from_array(np.array(np.nan, np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            with_first_output(helper.make_node("ReduceMax", ["output"], ["sentence_embedding"])),
            r"first output sentence_embedding, for 2 texts of 3 tokens, has shape \(1, 1, 1\), not a vector a token: "
            "export it with optimum, task feature-extraction",
        ),
        (
            with_first_output(helper.make_node("Identity", ["input_ids"], ["ids"]), kind=TensorProto.INT64),
            "first output ids, for 2 texts of 3 tokens, is int64 and not float32: export it with optimum",
        ),
        (
            with_first_output(helper.make_node("SequenceConstruct", ["output"], ["list"]), kind=None),
            "first output list, for 2 texts of 3 tokens, is list and not float32",
        ),
        (
            with_first_output(
                helper.make_node("Constant", [], ["nan"], value=NAN),
                helper.make_node("Add", ["output", "nan"], ["sum"]),
            ),
            "first output sum, for 2 texts of 3 tokens, is not finite, download it again or export it with optimum",
        ),
    ],
)
def test_other_outputs(change: Callable[[ModelProto], object], message: str, altered: Callable[..., Path]) -> None:
    with pytest.raises(QuantizationError, match=message):
        check_source(altered(change))


def test_no_weights(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["input_ids"], ["output"], to=TensorProto.FLOAT)
    values = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, FREE),
        helper.make_tensor_value_info("output", TensorProto.FLOAT, FREE),
    ]
    graph = helper.make_graph([cast], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph), tmp_path / "in.onnx")
    assert "has no MatMul with weights to quantize: is it a transformer's model.onnx?" in refusal(tmp_path / "in.onnx")


# What the recipe per-token does not take


OTHERWISE = "take --recipe avx2, or keep float32: python -m export --precision fp32"
ONLY_BERT = f"and the recipe per-token takes only encoders like BERT, exported by optimum: {OTHERWISE}"


def without_bias(model: ModelProto) -> None:
    index = positions(model, "Add")[-1]
    node = model.graph.node[index]
    (source,) = (name for name in node.input if not name.endswith("bias"))
    replace_node(model, index, helper.make_node("Identity", [source], node.output))


def with_two_readers(model: ModelProto) -> None:
    product = model.graph.node[positions(model, "MatMul")[-1]].output[0]
    node = model.graph.node[positions(model, "LayerNormalization")[-1]]
    add = next(other for other in model.graph.node if other.output[0] == node.input[0])
    add.input[0] = product


def with_a_wide_bias(model: ModelProto) -> None:
    node = model.graph.node[positions(model, "Add")[-1]]
    name = next(name for name in node.input if name.endswith("bias"))
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:1], name))


def with_gemm(model: ModelProto) -> None:
    """The last linear layer as Gemm between Reshapes, as some exporters write it."""
    index = positions(model, "MatMul")[-1]
    node = model.graph.node[index]
    shape = numpy_helper.from_array(np.array([-1, 64]), "flat_shape")
    model.graph.initializer.append(shape)
    replace_node(
        model,
        index,
        helper.make_node("Shape", [node.input[0]], ["full_shape"], end=2),
        helper.make_node("Constant", [], ["channels"], value=numpy_helper.from_array(np.array([32]))),
        helper.make_node("Concat", ["full_shape", "channels"], ["out_shape"], axis=0),
        helper.make_node("Reshape", [node.input[0], "flat_shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", node.input[1]], ["flat_product"]),
        helper.make_node("Reshape", ["flat_product", "out_shape"], node.output),
    )


def with_an_output_that_is_a_product(model: ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[positions(model, "MatMul")[-1]].output[0]


def with_a_layer_less(model: ModelProto) -> None:
    """The output is that of the first half of a layer."""
    model.graph.output[0].name = model.graph.node[positions(model, "LayerNormalization")[-2]].output[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_bias, r"\S+ is a linear layer without a bias"),
        (with_two_readers, r"\S+ is a linear layer without a bias"),
        (with_a_wide_bias, r"\S+ has a bias of shape \(1,\) for a weight of \(64, 32\)"),
        (with_gemm, r"\S+ \(\w+\) is not what a layer of BERT has in its place"),
        (with_an_output_that_is_a_product, r"\S+ is a linear layer without a bias"),
        (with_a_layer_less, r"\S+ is not the output of a layer of BERT"),
    ],
)
def test_other_layers_are_for_a_dynamic_recipe(
    change: Callable[[ModelProto], object], message: str, altered: Callable[..., Path], tmp_path: Path
) -> None:
    path = altered(change)
    check_source(path)
    with pytest.raises(QuantizationError, match=f"^{path}: {message}, {ONLY_BERT}$"):
        fuse(path)
    dynamic(path, tmp_path / "out.onnx")


IDS, MASKED = INPUTS[:1], INPUTS[:2]
SMALL = {"vocab_size": 50}


@pytest.mark.parametrize(
    ("make", "inputs", "message"),
    [
        (
            lambda: bert(BertForTokenClassification, **SMALL),
            INPUTS,
            r"\S+ \(linear layer\) is not what a layer of BERT has",
        ),
        (lambda: bert(BertForMaskedLM, **SMALL), INPUTS, r"\S+ \(linear layer\) is not what a layer of BERT has"),
        (lambda: bert(is_decoder=True, use_cache=False, **SMALL), INPUTS, "no attention was recognised in it"),
        (
            lambda: bert(hidden_act="silu", **SMALL),
            INPUTS,
            r"\S+ \(Sigmoid\) is not what a layer of BERT has in its place",
        ),
        (lambda: bert(**SMALL), IDS, r"\S+ is attention of another kind than BERT's"),
        (
            lambda: shaken(ElectraModel(ElectraConfig(**SIZES | SMALL, embedding_size=16))),
            INPUTS,
            r"\S+ \(linear layer\) is not what a layer of BERT has in its place",
        ),
        (
            lambda: shaken(T5EncoderModel(T5Config(**T5_SIZES, **SMALL))),
            MASKED,
            r"\S+ is a linear layer without a bias",
        ),
    ],
    ids=["tokens", "masked", "decoder", "silu", "no mask", "electra", "t5"],
)
def test_other_models_are_for_a_dynamic_recipe(
    make: Callable[[], PreTrainedModel], inputs: Sequence[str], message: str, tmp_path: Path
) -> None:
    path = export(make(), tmp_path / "in.onnx", inputs)
    check_source(path)
    with pytest.raises(QuantizationError, match=f"^{path}: {message}.*, {ONLY_BERT}$"):
        fuse(path)
    dynamic(path, tmp_path / "out.onnx")


def test_models_of_other_outputs_and_inputs(tmp_path: Path) -> None:
    path = export(bert(BertForSequenceClassification, **SMALL), tmp_path / "classes.onnx")
    assert "has shape (2, 2), not a vector a token" in refusal(path)
    path = export(bert(**SMALL), tmp_path / "fixed.onnx", dynamic=False)
    assert "takes exactly 2 texts at a time (input_ids)" in refusal(path)
    image = shaken(ViTModel(ViTConfig(**SIZES, image_size=32, patch_size=8)))
    path = export(image, tmp_path / "image.onnx", ["pixel_values"], torch.zeros((1, 3, 32, 32)))
    assert "reads pixel_values, and not" in refusal(path)


def test_an_opset_that_is_too_old(tmp_path: Path) -> None:
    path = export(bert(attn_implementation="eager", **SMALL), tmp_path / "in.onnx", opset=12)
    check_source(path)
    with pytest.raises(QuantizationError, match=f"^{path} is of opset 12: export it for 13 or later, as optimum does$"):
        fuse(path)
    dynamic(path, tmp_path / "out.onnx")


def test_an_opset_that_is_too_new(altered: Callable[..., Path]) -> None:
    path = altered(lambda model: setattr(model.opset_import[0], "version", 99))
    assert f"{path} cannot be run by onnxruntime (" in refusal(path)


def test_attention_of_onnx_is_not_taken_for_that_of_onnxruntime(tmp_path: Path) -> None:
    """Both are named Attention; ONNX has it since opset 23."""
    table, weight = (numpy_helper.from_array(np.eye(32, dtype=np.float32), name) for name in ("table", "weight"))
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("MatMul", ["words", "weight"], ["query"]),
        helper.make_node("Attention", ["query", "words", "words"], ["output"], q_num_heads=2, kv_num_heads=2),
    ]
    values = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, FREE),
        helper.make_tensor_value_info("output", TensorProto.FLOAT, [*FREE, 32]),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [table, weight])
    path = tmp_path / "in.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    check_source(path)
    with pytest.raises(QuantizationError, match=r"query is a linear layer without a bias"):
        fuse(path)
    dynamic(path, tmp_path / "out.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert "Attention" in operators
    assert "MatMulInteger" in operators


def test_what_the_tools_raise_is_told(altered: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **settings: object) -> None:
        raise KeyError("onnx::Shape_422")

    monkeypatch.setattr(quantize.fusion, "optimize_model", stop)
    monkeypatch.setattr(quantize.dynamic, "quantize_dynamic", stop)
    path = altered(lambda model: None)
    with pytest.raises(
        QuantizationError, match=rf"stops onnxruntime's fusion \(KeyError\('onnx::Shape_422'\)\), {ONLY_BERT}"
    ):
        fuse(path)
    with pytest.raises(QuantizationError, match=r"stops onnxruntime's quantize_dynamic \(KeyError.*\): export it with"):
        dynamic(path, path.with_name("out.onnx"))


# What works


def bert_without_segments(path: Path, tokenizer: Path) -> Path:
    """Segments are a constant of the model."""
    return export(bert(), path, MASKED)


def bert_of_opset_20(path: Path, tokenizer: Path) -> Path:
    """Gelu is one operator, here with tanh."""
    return export(bert(hidden_act="gelu_new"), path, opset=20)


def distilbert(path: Path, tokenizer: Path) -> Path:
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "initializer_range": 0.2}
    return export(shaken(DistilBertModel(DistilBertConfig(**sizes))), path, MASKED)


def roberta(path: Path, tokenizer: Path) -> Path:
    return export(shaken(RobertaModel(RobertaConfig(**SIZES, vocab_size=1000, pad_token_id=1))), path, MASKED)


def xlm_roberta(path: Path, tokenizer: Path) -> Path:
    """As optimum exports it; padding is another token, and there are rows of words that no token has."""
    model = shaken(XLMRobertaModel(XLMRobertaConfig(**SIZES, vocab_size=1010, pad_token_id=3)))
    model.save_pretrained(path.with_name("model"))
    shutil.copy(tokenizer, path.with_name("model") / "tokenizer.json")
    to_onnx(path.with_name("model"), path, path.parent)
    return path


def mpnet(path: Path, tokenizer: Path) -> Path:
    return export(biased(MPNetModel(MPNetConfig(**SIZES, vocab_size=1000))), path, MASKED)


def biased(model: MPNetModel) -> MPNetModel:
    """With biases of attention that decide much."""
    shaken(model)
    with torch.no_grad():
        model.encoder.relative_attention_bias.weight *= 10
    return model


def sentence_transformers(path: Path, tokenizer: Path) -> Path:
    """As optimum exports it: outputs token_embeddings and sentence_embedding."""
    from optimum.exporters.onnx import main_export
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = path.with_name("model")
    bert().save_pretrained(folder)
    shutil.copy(tokenizer, folder / "tokenizer.json")
    transformer = Transformer(str(folder))
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main_export(
            str(folder),
            output=path.parent / "onnx",
            task="feature-extraction",
            library_name="sentence_transformers",
            do_validation=False,
        )
    return (path.parent / "onnx" / "model.onnx").rename(path)


@pytest.mark.parametrize(
    "make", [bert_without_segments, bert_of_opset_20, distilbert, roberta, xlm_roberta, mpnet, sentence_transformers]
)
def test_other_exports_are_quantized(make: Callable[[Path, Path], Path], small_tokenizer: Path, tmp_path: Path) -> None:
    path = make(tmp_path / "in.onnx", small_tokenizer)
    first, *others = (value.name for value in onnx.load(path).graph.output)
    for recipe, outputs in (("per-token", [first]), ("avx2", [first, *others])):
        report = quantized(path, small_tokenizer, recipe)
        assert report.texts > 0
        assert 0.999 < report.mean_cosine < 1
        assert [value.name for value in onnx.load(tmp_path / "int8.onnx").graph.output] == outputs


@pytest.mark.parametrize(("make", "padding"), [(roberta, 1), (xlm_roberta, 3)])
def test_a_text_that_names_padding(
    make: Callable[[Path, Path], Path], padding: int, small_tokenizer: Path, tmp_path: Path
) -> None:
    """It has a place of its own, and the tokens after it have the places that they would have without it."""
    path = make(tmp_path / "in.onnx", small_tokenizer)
    quantized(path, small_tokenizer)
    (name,) = (value.name for value in onnx.load(path).graph.output[:1])
    texts = [[0, 9, padding, padding, 11, 2], [padding, 12, 13, 14, 15, 2], [0, 9, 10, 11, 12, 2]]
    float32, int8 = (
        run(open_session(file), [name], feed(texts))[0].mean(axis=1) for file in (path, tmp_path / "int8.onnx")
    )
    lengths = np.linalg.norm(float32, axis=1) * np.linalg.norm(int8, axis=1)
    assert ((float32 * int8).sum(axis=1) / lengths > 0.999).all()
    for text, vector in zip(texts, int8, strict=True):  # alone as among others
        alone = run(open_session(tmp_path / "int8.onnx"), [name], feed([text]))[0].mean(axis=1)
        np.testing.assert_array_equal(alone[0], vector)


def test_mpnet_has_its_bias(small_tokenizer: Path, tmp_path: Path) -> None:
    """The same weights without it are another model; texts of any length have it, up to the longest."""
    path = mpnet(tmp_path / "in.onnx", small_tokenizer)
    quantized(path, small_tokenizer)
    operators = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert operators.count("AttentionBiasQuantize") == 2
    plain = MPNetModel(MPNetConfig(**SIZES, vocab_size=1000))
    biased(plain).encoder.relative_attention_bias.weight.data *= 0
    (tmp_path / "plain").mkdir()
    without = export(plain, tmp_path / "plain" / "in.onnx", MASKED)
    (name,) = (value.name for value in onnx.load(path).graph.output[:1])
    for tokens in (1, 5, 17, 130, 509):
        ids = feed([[0, *(3 + index * 37 % 900 for index in range(tokens))]])
        float32, int8, other = (
            run(open_session(file), [name], ids)[0][0].mean(axis=0) for file in (path, tmp_path / "int8.onnx", without)
        )
        assert cosine(float32, int8) > 0.999
        assert tokens == 1 or cosine(float32, other) < 0.999


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


@pytest.mark.parametrize(
    ("readers", "message"),
    [
        (1, f"no attention was recognised in it, {ONLY_BERT}"),
        (2, f"attention has a bias that is not one of the distance between tokens; {OTHERWISE}"),
    ],
)
def test_other_biases_of_attention(readers: int, message: str, small_tokenizer: Path, tmp_path: Path) -> None:
    """Of the last layer alone, or of all, each key's is that of all before it too."""
    path = mpnet(tmp_path / "in.onnx", small_tokenizer)
    model = onnx.load(path)
    makers = {node.output[0]: node for node in model.graph.node}
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    adds = [makers[makers[softmax.input[0]].input[0]] for softmax in softmaxes]
    (bias,) = set(adds[0].input) & set(adds[1].input)
    index = list(model.graph.node).index(makers[bias])
    axis = helper.make_node("Constant", [], ["keys"], value=numpy_helper.from_array(np.array(3)))
    replace_node(model, index, makers[bias], axis, helper.make_node("CumSum", [bias, "keys"], ["summed"]))
    for node in [node for node in model.graph.node if node.op_type == "Add" and bias in node.input][-readers:]:
        node.input[list(node.input).index(bias)] = "summed"
    onnx.save(model, path)
    with pytest.raises(QuantizationError) as caught:
        quantized(path, small_tokenizer)
    assert str(caught.value) == f"{path}: {message}"


class Backwards(RobertaModel):
    """Places count from the end."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        places = torch.ones_like(input_ids).cumsum(dim=1).flip(1)
        return super().forward(input_ids, attention_mask, position_ids=places, return_dict=False)


class Unmasked(RobertaModel):
    """Places count the tokens that are not masked, which is not what a text's ids tell."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        return super().forward(input_ids, attention_mask, position_ids=attention_mask.cumsum(dim=1), return_dict=False)


@pytest.mark.parametrize("kind", [Backwards, Unmasked])
def test_places_of_another_kind(kind: type[RobertaModel], small_tokenizer: Path, tmp_path: Path) -> None:
    path = export(shaken(kind(RobertaConfig(**SIZES, vocab_size=1000))), tmp_path / "in.onnx", MASKED)
    message = rf"^{path}: .* reads a table by .*: only input_ids, token_type_ids and places that count .*; {OTHERWISE}$"
    with pytest.raises(QuantizationError, match=message):
        quantized(path, small_tokenizer)
    assert quantized(path, small_tokenizer, "avx2").mean_cosine > 0.99


def test_the_tokenizer_of_another_model(small_tokenizer: Path, tmp_path: Path) -> None:
    path = export(bert(vocab_size=900), tmp_path / "in.onnx")
    for recipe in RECIPES:
        with pytest.raises(QuantizationError) as caught:
            quantized(path, small_tokenizer, recipe)
        assert str(caught.value) == (
            f"{path} has no token 999, which {small_tokenizer} has: name its own tokenizer.json with --tokenizer"
        )


@pytest.mark.parametrize(("kind", "places"), [("bert", 31), ("roberta", 33)])
def test_a_maximum_of_another_model(kind: str, places: int, small_tokenizer: Path, tmp_path: Path) -> None:
    """A RoBERTa has places for two tokens less than its table has rows."""
    models = {"bert": (BertModel, BertConfig), "roberta": (RobertaModel, RobertaConfig)}
    model, config = models[kind]
    made = model(config(**SIZES, vocab_size=1000, max_position_embeddings=places))
    path = export(shaken(made), tmp_path / "in.onnx", MASKED)
    for recipe in ("per-token", "avx2"):
        with pytest.raises(QuantizationError) as caught:
            quantized(path, small_tokenizer, recipe)
        assert str(caught.value) == f"{path} takes no text of 32 tokens: name its own maximum with --max-tokens"


# Thousands of others


def test_no_model_of_the_onnx_project_is_taken(tmp_path: Path) -> None:
    """Of its operators' tests, one in twenty; all of its small networks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some divide by zero to show what comes of it
        cases = onnx.backend.test.loader.load_model_tests(kind="node")
    paths = list(Path(onnx.backend.test.loader.DATA_DIR).rglob("*.onnx"))
    for number, case in enumerate(cases[::20]):
        paths.append(tmp_path / f"{number}.onnx")
        assert case.model is not None
        paths[-1].write_bytes(case.model.SerializeToString())
    assert len(paths) > 200
    for path in paths:
        for recipe in ("per-token", "avx2"):
            with pytest.raises(QuantizationError, match=f"^{path} .+"):
                quantize_file(path, tmp_path / "out", NO_TOKENIZER, recipe=recipe)
    assert not (tmp_path / "out").exists()
