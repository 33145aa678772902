"""Deployed files: a small classifier in both forms, and detectors and segmenters that answer the same for any image."""

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

from cnv2_plugin.deploy import export_onnx
from tests.kernels.cases import finished

TINY = dict(layers=(1, 2), growth=(8, 16), groups_1x1=4, groups_3x3=4, groups_sfr=2, condense_factor=4, sparse_factor=2)
CLASSES = ['cat', 'dog', 'hen', 'fox', 'owl']


def classifier(path, native=False, batch='dynamic', **metadata):
    """Write the file and return its model."""
    model = finished('condensenetv2', arch=TINY, num_classes=5)
    metadata = dict(dict(classes=CLASSES), **metadata)
    export_onnx(model, path, (3, 32, 32), batch, native=native, metadata=metadata)
    return model


def constant_file(path, metadata, shape=(1, 3, 'H', 'W'), **outputs):
    """A file that takes images and gives arrays, whatever the images are."""
    inputs = [helper.make_tensor_value_info('input', TensorProto.FLOAT, shape)]
    nodes = [helper.make_node('Identity', [f'{name}_'], [name]) for name in outputs]
    arrays = {name: numpy.asarray(array) for name, array in outputs.items()}
    results = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    values = [numpy_helper.from_array(array, f'{name}_') for name, array in arrays.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, 'g', inputs, results, values), opset_imports=[helper.make_opsetid('', 17)]
    )
    proto.ir_version = 8
    helper.set_model_props(proto, metadata)
    onnx.save(proto, path)
    return path
