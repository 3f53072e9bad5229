"""The page in the browser: slides and maps for people who read slides (`view-slides`).

`run_folders.py` says what lies in OUT, `pixels.py` gives the slide's tiles and `layers.py` those of the map on the same
deep-zoom geometry (`deep_zoom.py`); `review.py` and `grading.py` keep what people say of a slide, append-only;
`pictures.py` scores a picture or a place; `access.py` decides who may ask, `app.py` answers.
"""
