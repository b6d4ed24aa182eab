"""Windows of a random resized crop."""

from hypothesis import given, settings
from hypothesis import strategies as st

from neuscale.data.augment.crops import draw_windows, window_pixels


@settings(deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 50))
def test_windows_lie_inside_their_images(height: int, width: int, seed: int) -> None:
    for window in draw_windows(0.08, seed, 0, 20):
        top, left, h, w = window_pixels(window, height, width)
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert h >= 1 and w >= 1
