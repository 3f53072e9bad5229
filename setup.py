"""The one part that is compiled, and optional: without a C compiler or libjpeg's headers all works, only slower."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "wsi_pipeline.slides.readers._jpeg_tiles",
            ["wsi_pipeline/slides/readers/_jpeg_tiles.c"],
            libraries=["jpeg"],
            extra_compile_args=["-O2"],
            # A libjpeg beside it is found first: where a machine has none, it can be brought along.
            extra_link_args=["-Wl,-rpath,$ORIGIN"],
            py_limited_api=True,
            optional=True,
        )
    ]
)
