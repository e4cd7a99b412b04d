"""Keys and values kept: the same text as without, exact bytes, and k bits."""

import pytest
import torch
from torch import Tensor, nn

from kbitlib.models.cache import KVCache
from kbitlib.models.transformer import Shape, Transformer, generate
from kbitlib.quant import Format, quantize

SHAPE = Shape(width=48, depth=3, heads=2, context=20)  # 24 channels a head
FORMATS = ("int8-row", "int4-row", "int4-row-zp", "nf3-b8", "int3-b4-zp", "int2-row-zpf", "binary-row", "ternary-b8")


@pytest.fixture
def model() -> Transformer:
    made = Transformer(SHAPE).initialise(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return made.eval()


def tokens(time: int, batch: int = 1) -> Tensor:
    return torch.randint(0, 256, (batch, time), generator=torch.Generator().manual_seed(3))


def some(time: int, channels: int = 24, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(time)
    keys, values = torch.randn(2, 2, 2, time, channels, generator=generator).to(dtype)
    return keys, values


class WithoutCache(nn.Module):
    """A model that reads its whole window for each byte."""

    def __init__(self, inner: Transformer) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.inner(tokens)
        return logits


@pytest.mark.parametrize("parts", [[20], [1] * 20, [7, 1, 1, 11], [1, 19]])
@torch.no_grad()
def test_logits_are_those_of_the_whole_text(model: Transformer, parts: list[int]) -> None:
    text, cache = tokens(20, batch=3), KVCache(20)
    found = torch.cat([model(part, cache) for part in text.split(parts, dim=1)], dim=1)
    assert cache.length == 20
    torch.testing.assert_close(found, model(text), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prompt", [b"d", b"def forward(", b"a prompt that is longer than the context"])
def test_the_same_text_is_written_as_without_a_cache(model: Transformer, prompt: bytes) -> None:
    for seed in range(3):
        given = {"length": 40, "context": 20, "seed": seed, "temperature": 0.7}
        assert generate(model, prompt, **given) == generate(WithoutCache(model), prompt, **given)


@pytest.mark.parametrize("format", FORMATS)
@torch.no_grad()
def test_what_is_kept_in_k_bits_does_not_depend_on_how_it_came(model: Transformer, format: str) -> None:
    text, whole, single = tokens(12, batch=2), KVCache(12, format), KVCache(20, format)
    expected = model(text, whole)
    found = torch.cat([model(part, single) for part in text.split([5, 1, 1, 1, 4], dim=1)], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert whole.nbytes == single.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", [*FORMATS, "mxfp4", "log4-row", "e2m1-b8-bf16"])
def test_each_head_of_each_token_is_quantized_by_itself(format: str, dtype: torch.dtype) -> None:
    cache, parts = KVCache(9, format), [some(time, dtype=dtype) for time in (4, 1, 3)]
    for keys, values in parts:
        kept = cache.extend(0, keys, values)
        cache.length += keys.shape[2]
    for found, given in zip(kept, (torch.cat(each, dim=2) for each in zip(*parts, strict=True)), strict=True):
        assert torch.equal(found, quantize(given.reshape(-1, 24), format).dequantize().view_as(given))
        assert found.dtype is dtype


@pytest.mark.parametrize("channels", [2, 6, 24, 80])
@pytest.mark.parametrize("format", ["int3-row", "int3-b2-zp", "nf5-b4", "ternary-row", "int4-row-fp32"])
def test_bytes_are_those_of_whole_rows(format: str, channels: int) -> None:
    cache, (keys, values) = KVCache(50, format), some(5, channels)
    for layer in range(3):
        cache.extend(layer, keys, values)
    cache.length = 5
    row = sum(Format.parse(format).stored_bytes((1, channels)).values())
    assert cache.nbytes == 3 * 2 * keys[..., 0].numel() * row
    assert cache.bits_per_value == 8 * row / channels


def test_an_unquantized_cache_keeps_what_it_is_given() -> None:
    cache, (keys, values) = KVCache(7), some(5, dtype=torch.bfloat16)
    assert (cache.nbytes, cache.bits_per_value) == (0, 0)
    kept = cache.extend(0, keys, values)
    cache.length += 5
    assert torch.equal(kept[0], keys)
    assert torch.equal(kept[1], values)
    assert (cache.nbytes, cache.bits_per_value) == (2 * keys.nbytes, 16)


def test_more_bits_bring_the_text_of_the_model_closer(model: Transformer) -> None:
    text = tokens(20)
    with torch.no_grad():
        exact = model(text)
        errors = [(model(text, KVCache(20, f"int{k}-row")) - exact).norm() for k in (2, 3, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)


def test_a_k_bit_cache_writes_the_same_for_the_same_seed(model: Transformer) -> None:
    given = {"length": 30, "context": 20, "cache_format": "int4-row"}
    assert generate(model, b"x", **given) == generate(model, b"x", **given)
    assert len(generate(model, b"x", **given)) == 30


def test_a_cleared_cache_is_an_empty_one(model: Transformer) -> None:
    cache, text = KVCache(20, "int4-row"), tokens(20)
    with torch.no_grad():
        first = model(text, cache)
        cache.clear()
        assert torch.equal(model(text, cache), first)


def test_what_fails_leaves_the_cache_as_it_was(model: Transformer) -> None:
    cache, text = KVCache(20), tokens(20)
    with torch.no_grad():
        model(text[:, :12], cache)
        with pytest.raises(ValueError, match="21 tokens do not fit the context of 20"):
            model(tokens(9), cache)
        model(text[:, 12:], cache)
    assert cache.length == 20


@pytest.mark.parametrize("format", ["int4-tensor", "nf4-b64-dq", "nvfp4", "kmeans4-row", "vq2c8", "e8c16", "q2.2"])
def test_formats_that_tokens_share_are_refused(format: str) -> None:
    with pytest.raises(ValueError, match=r"does not keep tokens one by one; take a format such as int4-row"):
        KVCache(4, format)


@pytest.mark.parametrize("format", [None, "int8-row"])
def test_other_numbers_than_those_kept_are_refused(format: str | None) -> None:
    def zeros(batch: int = 2, channels: int = 32, dtype: torch.dtype = torch.float32, time: int = 3) -> Tensor:
        return torch.zeros(batch, 2, time, channels, dtype=dtype)

    cache = KVCache(8, format)
    cache.extend(0, zeros(), zeros())
    cache.length = 3
    for wrong in (zeros(batch=1), zeros(channels=16), zeros(dtype=torch.float16)):
        with pytest.raises(ValueError, match="the cache keeps"):
            cache.extend(0, wrong, wrong)
    for keys, values in ((zeros(time=0), zeros(time=0)), (zeros(), zeros(batch=1))):
        with pytest.raises(ValueError, match="are not alike, or empty"):
            cache.extend(0, keys, values)
    cache.clear()
    assert cache.extend(0, zeros(batch=5), zeros(batch=5))[0].shape == (5, 2, 3, 32)


@pytest.mark.parametrize("capacity", [0, -1, 2.5, None])
def test_a_cache_holds_a_whole_number_of_tokens(capacity: object) -> None:
    with pytest.raises(ValueError, match="a whole number of tokens"):
        KVCache(capacity)  # type: ignore[arg-type]


def test_a_full_cache_says_so() -> None:
    with pytest.raises(ValueError, match="5 tokens do not fit the cache of 4"):
        KVCache(4).extend(0, *some(5))


def test_a_model_without_a_cache_takes_no_format(model: Transformer) -> None:
    with pytest.raises(ValueError, match="WithoutCache keeps no keys and values, so none in int4-row"):
        generate(WithoutCache(model), b"x", length=1, context=4, cache_format="int4-row")


@torch.no_grad()
def test_a_model_in_bfloat16_keeps_bfloat16(model: Transformer) -> None:
    cache = KVCache(20)
    assert model.bfloat16()(tokens(5), cache).dtype is torch.bfloat16
    assert cache.nbytes == 2 * SHAPE.depth * SHAPE.width * 5 * 2
