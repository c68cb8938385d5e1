"""On a CUDA device products with codes are those with the weights that the codes stand for."""

import pytest
import torch
import torch.nn.functional as F

from megalm.errors import UserError
from megalm.model.quantized import QuantizedWeight, WeightForm
from megalm.model.quantized_products import check_fp8

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

FORMS = {
    "int8": WeightForm("int8", None, stored=True),
    "int8 in groups": WeightForm("int8", 64, stored=True),
    "int4": WeightForm("int4", 32, stored=True),
    "int8_dynamic": WeightForm("int8", None, dynamic=True, stored=True),
    "fp8": WeightForm("fp8", None, dynamic=True, stored=True),
}


@pytest.mark.parametrize("tokens", [0, 1, 5, 16, 17, 100])
@pytest.mark.parametrize("form", FORMS)
def test_products_are_those_of_the_dequantised_weight(form: str, tokens: int) -> None:
    device = torch.device("cuda")
    if form == "fp8":
        try:
            check_fp8(device)
        except UserError as error:
            pytest.skip(str(error))
    generator = torch.Generator("cuda").manual_seed(0)
    weight = QuantizedWeight(96, 128, FORMS[form], device)
    weight.copy_(torch.randn(96, 128, device=device, generator=generator))
    x = torch.randn(tokens, 128, device=device, generator=generator).bfloat16()
    expected = F.linear(x.double(), weight.dequantize().double())
    with torch.no_grad():
        found = weight(x).double()
    assert found.shape == (tokens, 96)
    # activations in few bits are further off than a rounding of the result
    bound = {"fp8": 0.1, "int8_dynamic": 0.03}.get(form, 0.02)
    assert not tokens or float((found - expected).abs().max() / expected.abs().max()) < bound
