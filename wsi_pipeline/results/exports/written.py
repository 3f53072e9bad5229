"""Writes the exports of a map to its run folder; each kind's packages are imported when it is first written."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from wsi_pipeline.base.files import OutPath
from wsi_pipeline.results.exports.exported_map import ExportedMap
from wsi_pipeline.results.exports.formats import EXPORTS, ExportName


def write_exports(folder: OutPath, exports: Collection[ExportName], exported: ExportedMap) -> list[OutPath]:
    """Write them to the folder; the files written. Raises ResultError, OutputError."""
    paths = [folder / file for name in EXPORTS if name in exports for file in EXPORTS[name].files]
    # Side by side: half of their time goes into compression, which leaves the interpreter to others.
    with ThreadPoolExecutor(2, thread_name_prefix="exports") as pool:
        return list(pool.map(lambda path: _write(path, exported), paths))


def _write(path: OutPath, exported: ExportedMap) -> OutPath:
    # Imported here: each brings packages that a run without it need not wait for, or have.
    if path.name == "map.ome.tiff":
        from wsi_pipeline.results.exports.ome_tiff import write_ome_tiff as write
    elif path.name == "regions.dcm":
        from wsi_pipeline.results.exports.dicom import write_segmentation as write
    elif path.name == "map.dcm":
        from wsi_pipeline.results.exports.dicom import write_parametric_map as write
    elif path.name == "regions.asap.xml":
        from wsi_pipeline.results.exports.asap import write_asap as write
    else:
        from wsi_pipeline.results.exports.pdf import write_pdf as write
    write(path, exported)
    return path
