"""report.pdf: the report page, drawn as report.png is, and a page to grade on; text and outlines stay sharp.

The same report gives the same bytes.
"""

from datetime import datetime

from matplotlib.backends.backend_pdf import PdfPages

from wsi_pipeline.base.errors import ResultError
from wsi_pipeline.base.files import OutPath, new_file
from wsi_pipeline.base.text import printable
from wsi_pipeline.results.exports.exported_map import ExportedMap
from wsi_pipeline.results.figures.grading_page import GradedSlide, grading_figure
from wsi_pipeline.results.figures.report import report_figure
from wsi_pipeline.results.figures.report_words import ReportInfo, inside_text


def write_pdf(path: OutPath, exported: ExportedMap) -> None:
    """Write the pages. Raises ResultError where there is no picture of the slide, OutputError."""
    if exported.thumbnail is None:
        raise ResultError(
            f"{exported.slide_path}: the slide is not there, and its report shows it: say where it lies with --slide"
        )
    summary, finished = exported.summary, exported.finished
    about = {
        "Title": f"{printable(exported.name)}: map of invasive ductal carcinoma",
        "Creator": f"wsi_pipeline {summary['versions']['wsi_pipeline']}",
        "CreationDate": datetime.fromisoformat(summary["finished"]),
    }
    graded = GradedSlide(
        exported.name, finished.regions, finished.fields, exported.mpp0, summary["report_key"]
    )
    pages = [report_figure(exported.thumbnail, finished, report_info_of(exported)), grading_figure(graded)]
    with new_file(path) as file, PdfPages(file, metadata=about) as content:
        for page in pages:
            page.savefig(content, format="pdf")


def report_info_of(exported: ExportedMap) -> ReportInfo:
    """What the report page states of slide and run, from the summary."""
    summary = exported.summary
    return ReportInfo(
        slide_name=exported.name,
        size0=exported.size0,
        mpp0=exported.mpp0,
        mpp_overridden=summary["mpp_overridden"],
        models=[(model["name"], model["sha256"]) for model in summary["map_recipe"]["models"]],
        registered=summary.get("registered", ()),
        patch_px=summary["patch_px"],
        patch_mpp=summary["patch_mpp"],
        tissue_mm2=summary["tissue_mm2"],
        inside=inside_text(summary.get("inside")),
        warnings=summary["warnings"],
        version=summary["versions"]["wsi_pipeline"],
        date=summary["finished"][:10],
        **summary.get("model_words", {}),
    )
