#!/usr/bin/env python3
"""Records what AutoGPTQ's and AutoAWQ's own packers make of known integers, for src/files/packed/tests.rs.

    pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9     # and unpack both
    python scripts/record-packed.py AUTO_GPTQ_DIR AUTO_AWQ_DIR > tests/fixtures/packed/peers.json

Needs torch, numpy and transformers. Integers come from a linear congruential generator that the test
repeats; scales are powers of two, so that no packer rounds anything.
"""

import hashlib
import importlib.util
import json
import sys
import types

import torch

OUT, INPUTS, GROUP = 64, 96, 32
GROUPS = INPUTS // GROUP


class Numbers:
    def __init__(self, seed):
        self.state = seed

    def below(self, limit):
        self.state = (self.state * 1103515245 + 12345) % 2**31
        return (self.state >> 16) % limit


def layer(bits, seed):
    numbers = Numbers(seed)
    q = [[numbers.below(2**bits) for _ in range(INPUTS)] for _ in range(OUT)]
    zeros = [[1 + numbers.below(2**bits - 1) for _ in range(GROUPS)] for _ in range(OUT)]
    scales = [[2.0 ** -(3 + numbers.below(4)) for _ in range(GROUPS)] for _ in range(OUT)]
    q, zeros, scales = torch.tensor(q).float(), torch.tensor(zeros).float(), torch.tensor(scales)
    wide = lambda t: t.repeat_interleave(GROUP, dim=1)
    linear = torch.nn.Linear(INPUTS, OUT, bias=False)
    linear.weight.data = (q - wide(zeros)) * wide(scales)
    return linear, zeros, scales


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def record(packed, **more):
    parts = ["qweight", "qzeros", "scales"]
    return more | {part: digest(getattr(packed, part)) for part in parts}


def gptq(directory):
    path = f"{directory}/auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py"
    spec = importlib.util.spec_from_file_location("peer", path)
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    for bits in (2, 3, 4, 8):
        linear, zeros, scales = layer(bits, bits)
        packed = peer.QuantLinear(bits, GROUP, INPUTS, OUT, False)
        packed.pack(linear, scales, zeros.clone(), None)
        packed.scales = packed.scales.half()
        yield record(packed, bits=bits, seed=bits)


def awq(directory):
    # The package without its __init__, which imports much more.
    for name in ("awq", "awq.utils", "awq.modules"):
        package = types.ModuleType(name)
        package.__path__ = [f"{directory}/{name.replace('.', '/')}"]
        sys.modules[name] = package
    utils = types.ModuleType("awq.utils.utils")
    utils.get_best_device = lambda: "cpu"
    sys.modules["awq.utils.utils"] = utils
    from awq.modules.linear.gemm import WQLinear_GEMM

    linear, zeros, scales = layer(4, 99)
    packed = WQLinear_GEMM.from_linear(
        linear, 4, GROUP, scales=scales.t().contiguous(), zeros=zeros.t().contiguous()
    )
    yield record(packed, bits=4, seed=99)


json.dump({"gptq": list(gptq(sys.argv[1])), "awq": list(awq(sys.argv[2]))}, sys.stdout, indent=2)
print()
