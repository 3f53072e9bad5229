import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from wsi_pipeline.results.figures import fonts

NAMES = ("李明 HE-3", "王芳 HE-3")


@pytest.fixture(params=["fonts of this system", "no other font"])
def system(request, monkeypatch):
    """This system's fonts, and one that has none but matplotlib's own."""
    caches = (fonts._paths, fonts._family, fonts._shown)
    for cache in caches:
        cache.cache_clear()
    if request.param == "no other font":
        own = [entry for entry in font_manager.fontManager.ttflist if "DejaVu" in entry.name]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
        monkeypatch.setattr(font_manager, "findSystemFonts", list)
    yield request.param
    for cache in caches:
        cache.cache_clear()


def drawn(text):
    image = Image.new("L", (400, 40), "white")
    fonts.draw_text(image, (0, 0), text, 24, "black")
    return np.asarray(image)


def test_two_names_of_any_script_differ_on_the_picture(system):
    first, second = (fonts.printable(name) for name in NAMES)
    assert first != second
    assert "?" not in first + second
    assert not np.array_equal(drawn(NAMES[0]), drawn(NAMES[1]))
    for name in NAMES:
        assert fonts.text_width(name, 24) > fonts.text_width("HE-3", 24) + 20
        assert fonts.families(name)[0] == "DejaVu Sans"
        assert fonts.shorten(name, 10, 10) == fonts.printable(name)
        assert fonts.unknown_script(name) == bool(fonts.script_warnings(name))


def test_without_a_font_a_name_is_in_latin_letters_and_a_warning_says_so(system):
    if system == "no other font":
        assert fonts.printable("李明") == "LiMing"
        assert "LiMing" in fonts.script_warnings("李明")[0]
    for name in ("biopsy 12", "Müller", "Ωμέγα", "Иванов"):
        assert fonts.printable(name) == name
        assert fonts.script_warnings(name) == []
    assert fonts.printable("two\nlines") == "two?lines"


def test_a_long_name_keeps_both_ends():
    short = fonts.shorten("patient-0001-" + "x" * 200 + "-slide-7", 2.0, 10)
    assert short.startswith("patient")
    assert short.endswith("slide-7")
    assert "…" in short
