"""The cases of `faults.py`: each fault, each tempting healthy change, and pairs of faults, on one of three bases."""

import dataclasses

import faults_healthy as healthy
import faults_of_data as of_data
import faults_of_models as of_models
import faults_of_training as of_training
from faults_setup import BASES, Setup

FAULTS = of_data.FAULTS | of_models.FAULTS | of_training.FAULTS

# What a fault is compared with, where that is not the base as it is.
TWINS = {
    of_data.rare_positives_2_percent: healthy.very_rare_with_its_base_rate,
    of_data.rare_positives_5_percent: healthy.rare_with_its_base_rate,
    of_data.rare_negatives_3_percent: healthy.rare_negatives_with_their_base_rate,
    of_data.generator_made_once: healthy.third_of_the_rows_three_times,
    of_training.adapters_at_2e_5: healthy.adapters_at_1e_3,
    of_training.one_row_a_step: healthy.third_of_the_rows,
    of_training.two_rows_a_step_at_3e_4: healthy.third_of_the_rows,
}

PAIRS = [
    (of_training.adam_by_name, of_data.sorted_by_label),
    (of_training.adam_by_name, of_data.labels_1_and_2),
    (of_training.rate_of_1e_7, of_data.mask_inverted),
    (of_training.rate_of_1e_2, of_models.sigmoid_layer_over_sigmoid),
    (of_models.frozen_under_2e_5, of_data.cut_at_6_tokens),
    (of_training.steps_counted_in_epochs, of_data.sorted_by_label),
    (of_models.weights_not_loaded, of_training.adam_by_name),
    (of_training.gradient_descent_at_5e_5, of_models.dropout_of_95_percent),
    (of_models.squared_error, of_training.rate_of_1e_7),
    (of_training.clipped_at_1e_9, of_data.capitals_unknown_to_the_vocabulary),
    (of_models.logits_without_from_logits, of_training.adam_by_name),
    (of_data.validation_from_training_rows, of_training.rate_of_1e_2),
]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and data with no, one or two faults.

    Args:
        base: Key of `BASES`.
        faults: Tuple of functions that change a `Setup`.
        codes: Tuple of the codes of the faults.
    """

    base: str
    faults: tuple
    codes: tuple = ()

    @property
    def name(self) -> str:
        return " + ".join(fault.__name__ for fault in self.faults) + f" ({self.base})"

    @property
    def twin(self) -> "Case":
        """The healthy case to compare with."""
        return Case(self.base, (TWINS.get(self.faults[0], healthy.as_it_is),))

    def setup(self) -> Setup:
        """Returns the script with its faults."""
        setup = Setup(**BASES[self.base])
        for fault in self.faults:
            fault(setup)
        return setup


def code_of(fault):
    return next(code for code, faults in FAULTS.items() if fault in faults)


def faulty_cases() -> list[Case]:
    """Three at least of each code, spread over the bases."""
    bases, cases = list(BASES), []
    for number, (code, faults) in enumerate(FAULTS.items()):
        for i in range(max(3, len(faults))):
            cases.append(Case(bases[(i + number) % len(bases)], (faults[i % len(faults)],), (code,)))
    return cases


def healthy_cases() -> list[Case]:
    """Each once, spread over the bases, and each base as it is."""
    bases = list(BASES)
    changed = [
        Case(bases[i % len(bases)], (change,))
        for i, change in enumerate(healthy.HEALTHY)
        if change is not healthy.as_it_is
    ]
    return [*(Case(base, (healthy.as_it_is,)) for base in bases), *changed]


def pairs_of_faults() -> list[Case]:
    """Two faults at once."""
    bases = list(BASES)
    return [Case(bases[i % len(bases)], pair, tuple(map(code_of, pair))) for i, pair in enumerate(PAIRS)]
