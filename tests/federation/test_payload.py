"""What arrives of what is sent, in how many bytes, and how many all of CLIP would take."""

import numpy as np
import pytest
import torch

from pipeline.encoder.model import import_clip
from pipeline.errors import ConfigError
from pipeline.federation.methods.guard import unsound
from pipeline.federation.payload import (
    BLOCK,
    CLIP_PARAMETERS,
    PAYLOADS,
    clip_bytes,
    decode,
    encode,
    payload_bytes,
    received,
)
from tests.naive import payload as naive

WIDTHS = [1, 7, 511, 512, 513, 1300]


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("width", WIDTHS)
def test_int8_is_the_twins(width):
    values = draw(3, width) * torch.tensor([[1e-6], [1.0], [1e6]])
    comp = decode(encode(values, "int8"))
    for ours, row in zip(comp, values.numpy(), strict=True):
        assert np.array_equal(ours, naive.int8_round_trip(row, BLOCK))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_bytes_are_those_of_what_travels(width, payload):
    encoded = encode(draw(width), payload)
    assert sum(part.nbytes for part in encoded) == payload_bytes(width, payload)


@pytest.mark.parametrize("width", WIDTHS)
def test_errors_stay_within_half_a_step(width):
    values = draw(width)
    assert torch.equal(decode(encode(values, "fp32")), values)
    half = (decode(encode(values, "fp16")) - values).abs()
    assert (half <= values.abs() * 2**-11 + 2**-25).all()
    whole = (decode(encode(values, "int8")) - values).abs()
    assert whole.max() <= values.abs().max() / 254 * (1 + 1e-5)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_was_rounded_once_arrives_unchanged(payload):
    once = decode(encode(draw(2, 700), payload))
    np.testing.assert_allclose(decode(encode(once, payload)), once, rtol=1e-6)
    assert torch.equal(encode(once, payload).numbers, encode(draw(2, 700), payload).numbers)


def test_int8_rounds_to_nearest_and_ties_to_even():
    values = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0.49, -127.0])
    assert encode(values, "int8").numbers.tolist() == [127, 0, 2, 2, 0, -2, 0, -127]


def test_a_great_number_spoils_its_own_block_only():
    values = torch.full((2 * BLOCK,), 1e-3)
    values[0] = 1e3
    arrived = decode(encode(values, "int8"))
    assert not arrived[1:BLOCK].any()
    np.testing.assert_allclose(arrived[BLOCK:], 1e-3, rtol=1e-6)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_an_adapter_that_did_not_change_arrives_as_it_is(payload):
    adapter = draw(4, 600)
    assert torch.equal(received(adapter, adapter, payload), adapter)
    assert torch.equal(received(adapter, adapter + 1, "fp32"), adapter)


@pytest.mark.parametrize("payload", ["fp16", "int8"])
def test_small_updates_arrive_where_rounded_weights_would_stand_still(payload):
    weights = draw(5000) * 0.03
    update = draw(5000, seed=1) * 3e-6
    arrived = received(weights + update, weights, payload)
    error = (arrived - weights - update).norm() / update.norm()
    still = decode(encode(weights + update, payload)) - decode(encode(weights, payload)) - update
    assert error < 0.02 < 0.5 < still.norm() / update.norm()


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_still_found(payload, bad):
    clients, server = draw(2, 600), draw(600, seed=1)
    clients[1, 3] = bad
    assert list(unsound(received(clients, server, payload), server)) == [1]


def test_a_number_over_float16s_range_is_found_not_cut():
    server = torch.zeros(3)
    clients = torch.tensor([[1e5, 0, 0], [1, 0, 0]])
    assert list(unsound(received(clients, server, "fp16"), server)) == [0]
    assert unsound(received(clients, server, "int8"), server, by_itself=True) == {}


def test_an_unknown_payload_is_refused():
    with pytest.raises(ConfigError, match="'int4' is unknown; there are fp32, fp16, int8"):
        encode(draw(3), "int4")


SIZES = {  # width, pixels, layers, width of the image tower, patch, width of the text tower
    "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 512),
    "RN101": (512, 224, (3, 4, 23, 3), 64, None, 512),
    "RN50x4": (640, 288, (4, 6, 10, 6), 80, None, 640),
    "RN50x16": (768, 384, (6, 8, 18, 8), 96, None, 768),
    "RN50x64": (1024, 448, (3, 15, 36, 10), 128, None, 1024),
    "ViT-B/32": (512, 224, 12, 768, 32, 512),
    "ViT-B/16": (512, 224, 12, 768, 16, 512),
    "ViT-L/14": (768, 224, 24, 1024, 14, 768),
    "ViT-L/14@336px": (768, 336, 24, 1024, 14, 768),
}


@pytest.mark.parametrize("name", CLIP_PARAMETERS)
def test_clips_parameters_counted_again(name):
    *image, text = SIZES[name]
    with torch.device("meta"):  # shapes without memory
        module = import_clip().model.CLIP(*image, 77, 49408, text, text // 64, 12)
    assert sum(weights.numel() for weights in module.parameters()) == CLIP_PARAMETERS[name]


def test_the_released_adapter_against_clip():
    adapter = 2 * 512 * 512 + 2 * 512
    assert payload_bytes(adapter, "fp32") == 2_101_248
    assert clip_bytes("ViT-B/32") == 605_109_252
    assert clip_bytes("demo") is None
