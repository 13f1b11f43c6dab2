"""Four sets of short texts, each rated for sentiment by about twenty people."""

import csv
import dataclasses

import numpy as np
import sklearn.model_selection
import tensorflow_datasets as tfds

from bertbin_tf import assets

_CITATION = """\
@inproceedings{hutto2014vader,
  title = {{VADER}: A Parsimonious Rule-Based Model for Sentiment Analysis of Social Media Text},
  author = {Hutto, C. J. and Gilbert, Eric},
  booktitle = {Proceedings of the Eighth International AAAI Conference on Weblogs and Social Media (ICWSM)},
  year = {2014}
}
"""


@dataclasses.dataclass
class VaderConfig(tfds.core.BuilderConfig):
    """One of the four sets and the file that holds it."""

    file: str = ""


class Vader(tfds.core.GeneratorBasedBuilder):
    """The texts with human ratings that VADER was validated on, labelled positive or not.

    Each text has a valence, the mean of some twenty ratings between -4 and 4; the label is `valence > 0`. The split is
    by text: 20 % of the distinct texts of each class, drawn with a fixed seed, are `test`. Few texts occur twice, but
    11 of `nyt` and 1 of `amazon` do with both labels. MIT licence.

    | config | texts | train | test | positive in train | in test |
    | --- | --- | --- | --- | --- | --- |
    | `movies` | sentences of film reviews (rotten.tomatoes.com) | 8,484 | 2,121 | 49.4 % | 49.4 % |
    | `tweets` | tweets | 3,360 | 840 | 69.0 % | 68.9 % |
    | `amazon` | sentences of customer reviews of five products | 2,966 | 742 | 57.5 % | 57.1 % |
    | `nyt` | sentences of New York Times editorials | 4,149 | 1,041 | 42.5 % | 42.3 % |

    Features: `text` (string), `label` (0 is `negative`, 1 is `positive`), `valence` (float32).

    Example:
    >>> import bertbin_tf.datasets
    >>> dataset = tfds.load("vader/movies", split="train[:10%]", as_supervised=True)

    Reference: [Hutto & Gilbert, 2014](https://ojs.aaai.org/index.php/ICWSM/article/view/14550).
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        VaderConfig(
            name="movies", file="movieReviewSnippets_GroundTruth.txt", description="Sentences of film reviews."
        ),
        VaderConfig(name="tweets", file="tweets_GroundTruth.txt", description="Tweets."),
        VaderConfig(
            name="amazon", file="amazonReviewSnippets_GroundTruth.txt", description="Sentences of customer reviews."
        ),
        VaderConfig(name="nyt", file="nytEditorialSnippets_GroundTruth.txt", description="Sentences of editorials."),
    ]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["negative", "positive"]),
                    "valence": tfds.features.Scalar(np.float32),
                }
            ),
            supervised_keys=("text", "label"),
            homepage="https://github.com/cjhutto/vaderSentiment",
            citation=_CITATION,
            license="MIT",
        )

    def _split_generators(self, dl_manager):
        rows = _read_rows(assets.fetch("vader") / self.builder_config.file)
        train, test = _split_by_text(rows)
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, rows):
        yield from enumerate(rows)


def _read_rows(path):
    # UTF-8, whatever else is said of these files: read as Latin-1, their dashes and accents come out in pieces.
    with path.open(encoding="utf-8", newline="") as file:
        # A quote is a character like any other here.
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        {"text": text.strip(), "label": int(float(valence) > 0), "valence": float(valence)} for _, valence, text in rows
    ]


def _split_by_text(rows):
    """Returns the rows for training and for testing; a text that occurs twice is on one side only."""
    labels = {row["text"]: row["label"] for row in rows}
    _, test = sklearn.model_selection.train_test_split(
        list(labels), test_size=0.2, random_state=0, stratify=list(labels.values())
    )
    test = set(test)
    return [row for row in rows if row["text"] not in test], [row for row in rows if row["text"] in test]
