"""Why does my model not train?"""

from bertbin_tf.doctor.callback import DoctorCallback
from bertbin_tf.doctor.examination import diagnose
from bertbin_tf.doctor.finding import Diagnosis, Finding
from bertbin_tf.doctor.rules import RULES

CODES = tuple(RULES)

__all__ = ["CODES", "Diagnosis", "DoctorCallback", "Finding", "diagnose"]
