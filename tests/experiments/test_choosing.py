"""What a plan compares: bits a weight as formats cost them, and the full precision that records imply."""

import pandas as pd
import pytest

from kbitlib.experiments.choosing import offers, offers_of, with_full_precision
from kbitlib.experiments.settings import check, parameters
from kbitlib.quant import Format


def test_offers_cost_what_their_formats_do() -> None:
    names = ["bf16", "nf4-b64", "int3-b128-zp", "e2m1-b32-e8m0", "int4-row"]
    table = offers(names)
    assert list(table.format) == names
    assert list(table.data_type) == ["float", "nf", "int", "float", "int"]
    assert list(table.k) == [16, 4, 3, 4, 4]
    assert list(table.bits_per_weight[1:]) == [Format.parse(name).bits_per_weight((4096, 4096)) for name in names[1:]]
    assert list(table.block) == [0, 64, 128, 32, 0]
    with pytest.raises(ValueError, match="int99"):
        offers(["int99-b64"])


def test_records_give_the_formats_and_full_precision_they_hold() -> None:
    about = {"seed": 0, "params_nonemb": 1000, "method": "rtn", "element": "int", "k": 4, "block": 64, "delta_se": 0.01}
    rows = [
        {
            **about,
            "model": model,
            "format": form,
            "bits_per_weight": bits,
            "total_bits": 1,
            "loss": loss,
            "delta": delta,
        }
        for model, form, bits, loss, delta in [
            ("a", "int4-b64", 4.5, 2.1, 0.1),
            ("a", "int3-b64", 3.5, 2.5, 0.5),
            ("b", "int4-b64", 4.25, 1.6, 0.1),
        ]
    ]
    table = with_full_precision(pd.DataFrame(rows))
    full = table[table.format == "bf16"]
    assert full.loss.tolist() == pytest.approx([2.0, 1.5])
    assert full.total_bits.tolist() == [16_000, 16_000]
    found = offers_of(table).set_index("format")
    assert found.bits_per_weight["int4-b64"] == pytest.approx(4.375)
    assert found.data_type["int4-b64"] == "int"
    assert found.k["bf16"] == 16


@pytest.mark.parametrize(
    ("name", "value"),
    [("memories", ["8 gigs"]), ("published_memories", []), ("published_family", "GPT-5"), ("tokens_per_second", 0.0)],
)
def test_the_chapter_refuses_what_it_cannot_plan_for(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"07_choose_bits: {name}"):
        check("07_choose_bits", parameters("smoke", "07_choose_bits", {name: value}))
