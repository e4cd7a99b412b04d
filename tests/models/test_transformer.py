import pytest
import torch

from kbitlib.models.transformer import Shape, Transformer, generate

SHAPE = Shape(width=16, depth=2, context=12)


def model(seed: int = 0) -> Transformer:
    """A model whose output depends on its input: the layers that start at zero are filled."""
    made = Transformer(SHAPE).initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return made.eval()


def test_parameters_are_counted_as_they_are() -> None:
    made = Transformer(SHAPE)
    inside = sum(p.numel() for p in made.blocks.parameters())
    assert inside == SHAPE.params_nonemb == 12 * 16**2 * 2
    assert sum(p.numel() for p in made.parameters()) == SHAPE.params


def test_the_model_does_not_see_the_future() -> None:
    tokens = torch.randint(0, 256, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 7:] = 1
    before, after = model()(tokens), model()(changed)
    assert torch.equal(before[0, :7], after[0, :7])
    assert not torch.allclose(before[0, 7], after[0, 7])


def test_positions_matter() -> None:
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert not torch.allclose(model()(tokens)[0, -1], model()(tokens[:, [1, 0, 2, 3]])[0, -1])


def test_an_untrained_model_knows_nothing() -> None:
    logits = Transformer(SHAPE).initialise(0)(torch.zeros(1, 3, dtype=torch.long))
    assert torch.equal(logits, torch.zeros_like(logits))


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (Transformer(SHAPE).initialise(seed).embedding.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="13 tokens do not fit the context of 12"):
        model()(torch.zeros(1, 13, dtype=torch.long))


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 18"):
        Shape(width=18, depth=1, heads=4)


def test_what_is_written_is_the_same_for_the_same_seed() -> None:
    texts = [generate(model(), b"def f", length=20, context=12, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 20
    with pytest.raises(ValueError, match="empty"):
        generate(model(), b"", length=1, context=12)
