"""Names in the section `model` that no code goes by are refused with the nearest one."""

import pytest

from megalm.config import parse_config
from megalm.errors import UserError
from megalm.model.names import check_names


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("activation=swiglo", "swiglu"),
        ("position_embedding=alibbi", "alibi"),
        ("attention=torhc", "torch"),
        ("norm=plian", "plain"),
        ("activation_kernel=complie", "compile"),
        ("rope_kernel=ligger", "liger"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(override, nearest):
    with pytest.raises(UserError, match=f"did you mean '{nearest}'") as caught:
        check_names(parse_config({}, [f"model.{override}"]).model)
    assert "\n" not in str(caught.value)


def test_every_preset_uses_known_names():
    from megalm.config.presets import PRESETS

    for preset in PRESETS:
        check_names(parse_config({"model": {"preset": preset}, "batch": {"seq_length": 128}}).model)
