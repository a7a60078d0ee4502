"""A valid bundle in milliseconds and without torch, and the slow twin that says what it must give.

The proxy is a bag of embeddings: the mean over completion tokens plus half the mean over all
tokens, times one column a target. So its values depend on the text, on both masks, and not on
padding. The token `outlandish` has an embedding large enough to be out of distribution.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf import json_format
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from alinfik.v1 import (
    LOSS_REDUCTION_MEAN,
    NORMALISATION_NONE,
    BundleManifest,
    Encoding,
    FileDigest,
    LabelSettings,
    LanguageModel,
    Metrics,
    OutOfDistribution,
    Proxy,
    Sample,
    Target,
    TargetMetrics,
)

PAD, BEGIN, END = 0, 1, 2
STRANGE = "outlandish"
THRESHOLD = 20.0
HALF_WIDTH = 0.5
_CORPUS = [
    "Natalia sold clips to 48 of her friends in April. How many did she sell altogether?",
    "She sold 48 / 2 = 24 clips in May. Altogether she sold 48 + 24 = 72 clips.",
    "def add(a, b):\n    return a + b",
    STRANGE,
]
_DIMENSIONS = 8


def write_tiny_bundle(
    directory: Path,
    *,
    targets: Sequence[str] = ("gsm8k", "mbpp"),
    token_limit: int = 64,
    seed: int = 0,
    loops: int = 0,
    fails_on_friends: bool = False,
    explains: bool = True,
    made: str = "2025-01-01T00:00:00Z",
) -> Path:
    """Write a bundle to ``directory``, which must not exist, and return it.

    Args:
        directory: where to write it.
        targets: the targets' names, one column of the model each.
        token_limit: the longest row.
        seed: bundles of different seeds have different weights, and so different ids.
        loops: idle turns of every batch, about a microsecond each: for a slow model.
        fails_on_friends: make a model that fails on any batch with the word `friends`; it
            passes the server's trial and fails afterwards.
        explains: write a model of token values too.
        made: the manifest's creation time.
    """
    directory.mkdir(parents=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    embedding, columns = _weights(tokenizer, len(targets), seed)
    friends = tokenizer.token_to_id("Ġfriends") if fails_on_friends else -1
    model = _graph(embedding, columns, loops, friends)
    onnx.save(model, str(directory / "model.onnx"))
    if explains:
        onnx.save(_token_graph(embedding, columns), str(directory / "explain.onnx"))
    quantiles = np.linspace(-5, 5, 101)
    manifest = BundleManifest(
        format_version=1,
        proxy=Proxy(backbone="bag", parameter_count=embedding.size + columns.size),
        encoding=Encoding(
            token_limit=token_limit,
            prompt_template="Q: {prompt}\n",
            completion_template="A: {completion}",
            prefix_ids=[BEGIN],
            suffix_ids=[END],
            pad_id=PAD,
        ),
        language_model=LanguageModel(name="tiny", sha256="0" * 64),
        labels=LabelSettings(
            loss_reduction=LOSS_REDUCTION_MEAN,
            normalisation=NORMALISATION_NONE,
            dtype="float32",
            unit="nats per unit learning rate",
            sample_count=100,
        ),
        targets=[
            Target(name=name, sha256="0" * 64, sample_count=8, value_quantiles=quantiles)
            for name in targets
        ],
        out_of_distribution=OutOfDistribution(
            score_quantiles=np.linspace(0, THRESHOLD, 101), threshold=THRESHOLD
        ),
        metrics=Metrics(
            held_out_count=20,
            export_error=1e-6,
            targets=[
                TargetMetrics(
                    target=name, spearman=0.6, pearson=0.6, length_spearman=0.4, coverage=0.9
                )
                for name in targets
            ],
        ),
    )
    manifest.create_time.FromJsonString(made)
    write_manifest(directory, manifest)
    return directory


def write_manifest(directory: Path, manifest: BundleManifest) -> None:
    """Fill in the digests of the directory's files and the bundle id, and write the manifest."""
    manifest.ClearField("files")
    for path in sorted(directory.iterdir()):
        if path.name != "manifest.json":
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            manifest.files[path.name].CopyFrom(FileDigest(sha256=digest, size_bytes=len(content)))
    manifest.bundle_id = ""
    fields = json_format.MessageToDict(manifest, preserving_proto_field_name=True)
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    fields["bundle_id"] = hashlib.sha256(canonical.encode()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(fields, indent=2), encoding="utf-8")


def read_manifest(directory: Path) -> BundleManifest:
    """Parse a bundle's manifest and check nothing."""
    text = (directory / "manifest.json").read_text(encoding="utf-8")
    return json_format.Parse(text, BundleManifest())


def expected_values(directory: Path, sample: Sample) -> tuple[np.ndarray, float]:
    """What the bundle must give for one sample: its values [K] float32 and its OOD score.

    The encoding rule is that of ``Encoding`` in bundle.proto, a token at a time.
    """
    encoding = read_manifest(directory).encoding
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    prompt, completion = expected_tokens(tokenizer, encoding, sample)
    embedding, columns = _read_weights(directory)
    every = embedding[[*encoding.prefix_ids, *prompt, *completion]]
    hidden = embedding[completion].mean(axis=0) + 0.5 * every.mean(axis=0)
    return hidden @ columns, float(np.linalg.norm(hidden))


def expected_token_values(directory: Path, sample: Sample) -> np.ndarray:
    """What the bundle must say of each token: [T, K] float32."""
    encoding = read_manifest(directory).encoding
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    prompt, completion = expected_tokens(tokenizer, encoding, sample)
    embedding, columns = _read_weights(directory)
    return embedding[[*encoding.prefix_ids, *prompt, *completion]] @ columns


def expected_tokens(
    tokenizer: Tokenizer, encoding: Encoding, sample: Sample
) -> tuple[list[int], list[int]]:
    """The prompt's and the completion's tokens, after truncation."""

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    prompt: list[int] = []
    if sample.prompt:
        prompt = ids(encoding.prompt_template.replace("{prompt}", sample.prompt))
    completion = ids(encoding.completion_template.replace("{completion}", sample.completion))
    completion += encoding.suffix_ids
    room = encoding.token_limit - len(encoding.prefix_ids)
    while len(prompt) + len(completion) > room:
        if len(prompt) > room // 2:
            prompt = prompt[1:]
        else:
            completion = completion[:-1]
    return prompt, completion


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            min_frequency=1,
            special_tokens=["<pad>", "<begin>", "<end>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def _weights(tokenizer: Tokenizer, targets: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    embedding = random.normal(size=(tokenizer.get_vocab_size(), _DIMENSIONS)).astype(np.float32)
    embedding[tokenizer.token_to_id(STRANGE)] *= 100
    # Padding must not count; if it does, it shows.
    embedding[PAD] = 1000.0
    return embedding, random.normal(size=(_DIMENSIONS, targets)).astype(np.float32)


def _read_weights(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    graph = onnx.load(str(directory / "model.onnx")).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return weights["embedding"], weights["columns"]


def _graph(
    embedding: np.ndarray, columns: np.ndarray, loops: int, fails_on: int
) -> onnx.ModelProto:
    def mean(mask: str) -> list[onnx.NodeProto]:
        """`{mask}_mean` [B, D]: the mean of the embedded tokens where `mask` [B, T] is 1."""
        return [
            helper.make_node("Cast", [mask], [f"{mask}_float"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", [f"{mask}_float", "last"], [f"{mask}_column"]),
            helper.make_node("Mul", ["embedded", f"{mask}_column"], [f"{mask}_kept"]),
            helper.make_node("ReduceSum", [f"{mask}_kept", "tokens"], [f"{mask}_sum"], keepdims=0),
            helper.make_node("ReduceSum", [f"{mask}_column", "tokens"], [f"{mask}_n"], keepdims=0),
            helper.make_node("Div", [f"{mask}_sum", f"{mask}_n"], [f"{mask}_mean"]),
        ]

    nodes = [
        # Sends the one token past the end of the embedding.
        helper.make_node("Equal", ["input_ids", "fails_on"], ["fails"]),
        helper.make_node("Where", ["fails", "nowhere", "input_ids"], ["ids"]),
        helper.make_node("Gather", ["embedding", "ids"], ["embedded"]),
        *mean("completion_mask"),
        *mean("attention_mask"),
        helper.make_node("Mul", ["attention_mask_mean", "half"], ["context"]),
        helper.make_node("Loop", ["loops", "", "context"], ["looped"], body=_idle()),
        helper.make_node("Add", ["completion_mask_mean", "looped"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "columns"], ["value"]),
        helper.make_node("Sub", ["value", "half_width"], ["lower"]),
        helper.make_node("Add", ["value", "half_width"], ["upper"]),
        helper.make_node("ReduceL2", ["hidden", "last_of_two"], ["ood"], keepdims=0),
    ]
    constants = {
        "embedding": embedding,
        "columns": columns,
        "half": np.array(0.5, np.float32),
        "half_width": np.array(HALF_WIDTH, np.float32),
        "tokens": np.array([1]),
        "last": np.array([2]),
        "last_of_two": np.array([1]),
        "loops": np.array(loops),
        "fails_on": np.array(fails_on),
        "nowhere": np.array(1 << 40),
    }
    inputs = ("input_ids", "attention_mask", "completion_mask")
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(i, TensorProto.INT64, ["batch", "length"]) for i in inputs],
        [
            *(
                helper.make_tensor_value_info(o, TensorProto.FLOAT, ["batch", columns.shape[1]])
                for o in ("value", "lower", "upper")
            ),
            helper.make_tensor_value_info("ood", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    return model


def _token_graph(embedding: np.ndarray, columns: np.ndarray) -> onnx.ModelProto:
    """Each token's value is what its own embedding gives."""
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
        # Both masks are read, as by a real one.
        helper.make_node("Max", ["attention_mask", "completion_mask"], ["mask"]),
        helper.make_node("Cast", ["mask"], ["counts"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["counts", "last"], ["column"]),
        helper.make_node("Mul", ["embedded", "column"], ["kept"]),
        helper.make_node("MatMul", ["kept", "columns"], ["token_values"]),
    ]
    constants = {"embedding": embedding, "columns": columns, "last": np.array([2])}
    inputs = ("input_ids", "attention_mask", "completion_mask")
    shape = ["batch", "length", columns.shape[1]]
    graph = helper.make_graph(
        nodes,
        "tiny_tokens",
        [helper.make_tensor_value_info(i, TensorProto.INT64, ["batch", "length"]) for i in inputs],
        [helper.make_tensor_value_info("token_values", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    return model


def _idle() -> onnx.GraphProto:
    """A loop's body that hands its state on."""
    return helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still_on"]),
            helper.make_node("Identity", ["state"], ["same_state"]),
        ],
        "idle",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("same_state", TensorProto.FLOAT, None),
        ],
    )
