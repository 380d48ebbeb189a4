#!/usr/bin/env python3
"""Compares packed directories that llm-quantize wrote with what the formats' own code reads in them.

    llm-quantize convert DIR hf -q F32 -o OUT -n dense      # our reading, as plain numbers
    python scripts/check-packed.py DIR OUT/dense --auto-gptq FILE --auto-awq FILE

Needs torch, numpy, safetensors and transformers; for W8A8 compressed-tensors. The two files are taken
out of the packages on PyPI (`pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9`):
auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py and awq/utils/packing_utils.py. Exits with 1 at the first
value that differs.
"""

import argparse
import importlib.util
import json
import pathlib
import sys

import torch
from safetensors import safe_open


def load(directory):
    tensors = {}
    for path in sorted(pathlib.Path(directory).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensors[name] = file.get_tensor(name)
    return tensors


def module(path):
    spec = importlib.util.spec_from_file_location("peer", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def gptq(tensors, layer, config, peer):
    """The weight as AutoGPTQ's layer multiplies it: the layer applied to the unit matrix."""
    qweight, scales = tensors[layer + ".qweight"], tensors[layer + ".scales"]
    bits, out = config["bits"], qweight.shape[1]
    inputs = qweight.shape[0] * 32 // bits
    group = config["group_size"]
    linear = peer.QuantLinear(bits, group, inputs, out, False, weight_dtype=torch.float32)
    linear.qweight, linear.qzeros = qweight, tensors[layer + ".qzeros"]
    # In f32, so that products are not rounded to halves.
    linear.scales = scales.float()
    linear.g_idx = tensors[layer + ".g_idx"]
    return linear(torch.eye(inputs)).T


def awq(tensors, layer, config, peer):
    part = lambda name: tensors[f"{layer}.{name}"]
    scales = part("scales").float()
    group = config["group_size"]
    if group == -1:
        group = part("qweight").shape[0]
    return peer.dequantize_gemm(part("qweight"), part("qzeros"), scales, 4, group).T


def w8a8(tensors, layer, config, peer):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    args = QuantizationArgs(**config["config_groups"]["group_0"]["weights"])
    scale = tensors[layer + ".weight_scale"].float()
    return dequantize(tensors[layer + ".weight"], scale, args=args, dtype=torch.float32)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("packed")
    parser.add_argument("dense")
    parser.add_argument("--auto-gptq")
    parser.add_argument("--auto-awq")
    options = parser.parse_args()
    config = json.loads((pathlib.Path(options.packed) / "config.json").read_text())
    config = config["quantization_config"]
    packed, dense = load(options.packed), load(options.dense)
    method = config["quant_method"]
    if method == "gptq":
        read, peer, mark = gptq, module(options.auto_gptq), ".qweight"
    elif method == "awq":
        read, peer, mark = awq, module(options.auto_awq), ".qweight"
    else:
        read, peer, mark = w8a8, None, ".weight_scale"
    layers = [name.removesuffix(mark) for name in packed if name.endswith(mark)]
    values = 0
    for layer in layers:
        theirs, ours = read(packed, layer, config, peer), dense[layer + ".weight"]
        if theirs.shape != ours.shape or not torch.equal(theirs, ours):
            sys.exit(f"{layer}: {(theirs - ours).abs().max()} apart")
        values += ours.numel()
    print(f"{options.packed}: {len(layers)} layers, {values} values, all equal ({method})")


main()
