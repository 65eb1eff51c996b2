"""The files that graphs read weights from, against the package `onnx`, and refusals of files that no manifest names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.unit.test_question_answerer import new_model, write_bundle
from tinymusician.errors import BundleError
from tinymusician.quantize.precision import load_plan
from tinymusician.runtime.bundle import PACKAGED, describe_files, open_bundle
from tinymusician.runtime.external_data import check_external_data, external_locations
from tinymusician.runtime.question_answerer import QuestionAnswerer


def tensor(name: str, location: str | None = None) -> TensorProto:
    made = numpy_helper.from_array(np.ones(4, np.float32), name)
    if location is not None:
        onnx.external_data_helper.set_external_data(made, location)
        made.data_location = TensorProto.EXTERNAL
        made.ClearField("raw_data")
    return made


def graph(name: str, initializers: list[TensorProto], nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    return helper.make_graph(nodes, name, [], [output], initializers)


def save(folder: Path) -> Path:
    """A graph with tensors in every place where a file can be named."""
    constant = helper.make_node("Constant", [], ["c"], value=tensor("v", "constant.data"))
    inner = graph("inner", [tensor("i", "inner.data")], [])
    branch = helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=graph("other", [tensor("o")], []))
    sparse = helper.make_sparse_tensor(tensor("s", "sparse.data"), numpy_helper.from_array(np.arange(4)), [4])
    outer = graph("outer", [tensor("w", "weights.data"), tensor("p")], [constant, branch])
    outer.sparse_initializer.append(sparse)
    function = helper.make_function("local", "F", [], ["y"], [constant], [helper.make_opsetid("", 17)])
    function.node[0].attribute[0].t.CopyFrom(tensor("f", "function.data"))
    function.attribute_proto.append(helper.make_attribute("a", tensor("d", "default.data")))
    model = helper.make_model(outer, functions=[function])
    training = model.training_info.add()
    training.algorithm.CopyFrom(graph("training", [tensor("g", "training.data")], []))
    (folder / "graph.onnx").write_bytes(model.SerializeToString())
    return folder / "graph.onnx"


def test_every_place_that_names_a_file_is_read(tmp_path: Path) -> None:
    names = {"constant.data", "inner.data", "sparse.data", "weights.data", "function.data"}
    names |= {"default.data", "training.data"}
    assert external_locations(save(tmp_path)) == names


def test_graphs_with_their_weights_name_none() -> None:
    for path in PACKAGED.glob("*/*.onnx"):
        assert external_locations(path) == set()


def test_bytes_that_are_written_in_another_way_are_read(tmp_path: Path) -> None:
    """The value before the key, and a length in more bytes than needed: protocol buffers allow both."""
    entry = b"\x12\x06x.data" + b"\x0a\x88\x00location"
    content = entry
    for tag in (b"\x6a", b"\x2a", b"\x3a"):  # external_data of a tensor, initializer of a graph, graph of a model
        content = tag + bytes([len(content)]) + content
    (tmp_path / "graph.onnx").write_bytes(content)
    parsed = onnx.load(tmp_path / "graph.onnx", load_external_data=False).graph.initializer[0]
    assert [(each.key, each.value) for each in parsed.external_data] == [("location", "x.data")]
    assert external_locations(tmp_path / "graph.onnx") == {"x.data"}


@pytest.mark.parametrize("location", ["planted.data", "../planted.data", "/etc/passwd"])
def test_bundle_whose_graph_reads_another_file_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    model = helper.make_model(graph("outer", [tensor("w", location)], []))
    (folder / "lm.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "planted.data").write_bytes(bytes(16))
    (folder / "planted.data").write_bytes(bytes(16))
    files = describe_files(folder, [("lm.onnx", "lm", "float32")])
    with pytest.raises(BundleError, match=r"lm\.onnx reads weights from '.*', which the manifest does not name"):
        check_external_data(folder, files)
    if location == "planted.data":
        named = describe_files(folder, [("lm.onnx", "lm", "float32"), ("planted.data", "weights", "float32")])
        check_external_data(folder, named)


LARGE_TAG = b"\xba\x80\x80\x80\x10\x00"
"""Field 7 plus 2^32: ONNX Runtime cuts it to field 7."""


def deep_graph() -> bytes:
    """Graphs in graphs, each in an attribute of a node of the one before."""
    content = b""
    for tag in (*[b"\x32", b"\x2a", b"\x0a"] * 700, b"\x3a"):
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        content = tag + length + bytes([size]) + content
    return content


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x3a\x7f", b"\x3b", LARGE_TAG, deep_graph()])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever its name is: engines open files by their roles."""
    (tmp_path / "lm.bin").write_bytes(content)
    with pytest.raises(BundleError, match=r"lm\.bin is no ONNX graph"):
        check_external_data(tmp_path, describe_files(tmp_path, [("lm.bin", "lm", "")]))
    check_external_data(tmp_path, describe_files(tmp_path, [("lm.bin", "tokenizer", "")]))


def test_opened_bundles_are_checked(tmp_path: Path) -> None:
    """The graph is in the manifest with its digest; the file that it reads is not."""
    open_bundle(PACKAGED / "band-small")
    bundle = write_bundle(tmp_path, new_model(), load_plan("float32"))
    path = bundle / "lm.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="lm.data", size_threshold=0)
    entry = describe_files(bundle, [("lm.onnx", "lm", "float32")])[0]
    manifest = json.loads((bundle / "manifest.json").read_text())
    old = next(file for file in manifest["files"] if file["role"] == "lm")
    old |= {"sha256": entry.sha256, "size": entry.size}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"lm\.onnx reads weights from 'lm\.data', which the manifest does not name"):
        QuestionAnswerer(bundle, 1)
