"""A page about a finished run, or several: one HTML file that needs nothing else and opens from a mail.

    page = render("runs/reviews")

The folder of the run is read; the model is not loaded.
"""

from bertbin_tf.report.page import render
from bertbin_tf.report.reading import RunRecord, read_record
from bertbin_tf.report.verdict import verdict

__all__ = ["RunRecord", "read_record", "render", "verdict"]
