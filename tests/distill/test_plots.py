import base64

import numpy as np

from alinfik.distill.plots import scatter


def test_any_provider_s_name_is_text_and_the_smallest_are_others() -> None:
    names = [r"$\foo$", "_x", "北京"] * 2 + [f"p{number}" for number in range(20)]
    values = np.arange(len(names), dtype=float)
    image = base64.b64decode(scatter(values, values, names).partition(",")[2]).decode()
    for told in (r"$\foo$", "_x", "北京", "p0", "others"):
        assert f"{told}</text>" in image
    assert "p19</text>" not in image
